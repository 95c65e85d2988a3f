"""Building a network from the user's own code, and which files that code is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from torch import nn

from dfkd_fast.config.own_networks import OwnNetwork, arguments_flag
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.files.digests import of_file
from dfkd_fast.messages.notes import note

_MOST_FILES = 500
_INSTALLED = ("site-packages", "dist-packages")
_REACHED: list[Path] = []
"""folders of own code that can be imported from, the latest first"""
_BESIDE: dict[str, dict[str, Path]] = {}
"""what was found beside own files, by module name and then by SHA-256"""
_LATE: set[str] = set()
"""of those that some function imports, their SHA-256"""


def build_own(own: OwnNetwork, flag: str) -> nn.Module:
    """Run the code that a spec names and return the network that it builds; says that it runs it.

    Raises UserError, naming `flag`, where there is no such file, module or name, or the code fails or returns no
    nn.Module.
    """
    called = f"{flag} {own}"
    files = _beside(own, flag)
    if own.is_file:
        _check_late_imports(Path(own.place), files, called)
        _make_way(files)
    module = _import_file(own, called) if own.is_file else _import_module(own, called)
    found = getattr(module, own.name, None)
    if found is None:
        here = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        here = [key for key in here if not isinstance(vars(module)[key], nn.Module)]
        own_names = [key for key in here if getattr(vars(module)[key], "__module__", "") == module.__name__]
        raise unknown(f"{called}: NAME", own.name, own_names or here or ["a class or function of it"])
    if isinstance(found, nn.Module) or not callable(found):
        raise UserError(f"{called}: is a {type(found).__name__}; name a class or function that returns an nn.Module")
    try:
        network = found(**own.values())
    except (Exception, SystemExit) as error:  # the user's own code: anything may come out of it
        raise UserError(f"{called}: {own.name}() fails ({_reason(error)}); see {arguments_flag(flag)}") from error
    _check_origin(files, called)
    if not isinstance(network, nn.Module):
        raise UserError(f"{called}: returns a {type(network).__name__}, not an nn.Module")
    return network


def _beside(own: OwnNetwork, flag: str) -> dict[str, Path]:
    """The modules that a network's code imports of those beside it or in its package, by the names that it imports
    them by.
    """
    base, (_, *others) = _sources(own, flag)
    names = [other.relative_to(base).with_suffix("").as_posix().removesuffix("/__init__") for other in others]
    return {name.replace("/", "."): other for name, other in zip(names, others, strict=True)}


def _check_late_imports(file: Path, beside: Mapping[str, Path], called: str) -> None:
    """Raise UserError where two networks' code has different modules of one name and imports it within a function: at
    that moment only one of the two can be found.
    """
    for importer in (file, *beside.values()):
        _LATE.update(of_file(path) for path in _imported(importer, file.parent, late=True))
    for name, path in beside.items():
        known = _BESIDE.get(name, {}) | {of_file(path): path}
        if len(known) > 1 and _LATE & known.keys():
            both = " and ".join(map(str, known.values()))
            raise UserError(f"{called}: {name} is imported within a function, and is both {both}; rename one of them")
        _BESIDE[name] = known


def _make_way(files: Mapping[str, Path]) -> None:
    """Forget modules of these names that lie beside another file of the user's own, which keeps those that it has."""
    for name, file in files.items():
        origin = _origin(name)
        if origin is not None and not _is_same(origin, file) and any(f in origin.parents for f in _REACHED):
            del sys.modules[name]
    importlib.invalidate_caches()


def _check_origin(files: Mapping[str, Path], called: str) -> None:
    """Raise UserError where another module than that beside the file was imported: it would not be what is hashed."""
    for name, file in files.items():
        origin = _origin(name)
        if origin is not None and not _is_same(origin, file):
            raise UserError(f"{called}: its import of {name} takes {origin}, not {file}; rename {file.name}")


def _origin(name: str) -> Path | None:
    found = getattr(sys.modules.get(name), "__file__", None)
    return None if found is None else Path(found)


def _is_same(origin: Path, file: Path) -> bool:
    return origin.resolve() == file.resolve()


def source_files(own: OwnNetwork, flag: str) -> dict[str, str]:
    """The files that a network's code is in, with the SHA-256 of each: first its own, then those beside it, or in its
    package, that they import, and the `__init__.py` of every package that it is in. Of an installed package its own
    file alone. Runs none of it. Raises UserError where there are more files than can be kept an eye on.
    """
    base, files = _sources(own, flag)
    return {path.relative_to(base).as_posix(): of_file(path) for path in files}


def _sources(own: OwnNetwork, flag: str) -> tuple[Path, list[Path]]:
    """The folder that imports start at, and the files of `source_files`."""
    file = Path(own.place) if own.is_file else _module_file(own, f"{flag} {own}")
    if not file.is_file():
        raise UserError(f"{flag} {own}: no such file")
    base = file.parent
    if not own.is_file:
        base = file.parents[own.place.count(".") + (file.name == "__init__.py")]
    installed = bool(set(_INSTALLED) & set(file.parts))
    packages = [] if installed else [folder / "__init__.py" for folder in file.parents if base in folder.parents]
    todo = [file, *(path for path in packages if path.is_file() and path != file)]
    found = dict.fromkeys(todo)
    while todo and not installed:
        for other in _imported(todo.pop(), base):
            if other not in found and base in other.parents:
                found[other] = None
                todo.append(other)
        if len(found) > _MOST_FILES:
            raise UserError(f"{flag} {own}: imports more than {_MOST_FILES} files below {base}; move it elsewhere")
    return base, [file, *sorted(set(found) - {file})]


def _import_file(own: OwnNetwork, called: str) -> ModuleType:
    file = Path(own.place)
    if not file.is_file():
        raise UserError(f"{called}: no such file")
    place = sha256(os.fsencode(file.absolute())).hexdigest()[:12]
    name = f"_own_{file.stem}_{place}_{of_file(file)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    note(f"{called}: runs the code of {file}")
    _reach(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a .py file"
    assert spec.loader is not None, "a .py file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{called}: its code fails ({_reason(error)})") from error
    return module


def _import_module(own: OwnNetwork, called: str) -> ModuleType:
    _reach(Path.cwd())
    if own.place not in sys.modules:
        note(f"{called}: runs the code of {own.place}")
    try:
        return importlib.import_module(own.place)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and missing and f"{own.place}.".startswith(f"{missing}."):
            raise _no_module(own, called) from error
        raise UserError(f"{called}: its code fails ({_reason(error)})") from error


def _module_file(own: OwnNetwork, called: str) -> Path:
    """Where a module lies, found package by package without running any of them."""
    _reach(Path.cwd())
    parts, search = own.place.split("."), None
    for depth in range(1, len(parts) + 1):
        spec = _spec_of(".".join(parts[:depth]), search)
        search = None if spec is None else spec.submodule_search_locations
        if spec is None or (search is None and depth < len(parts)):
            raise _no_module(own, called)
    if spec is None or spec.origin is None:
        raise _no_module(own, called)
    return Path(spec.origin)


def _spec_of(name: str, search: Sequence[str] | None) -> ModuleSpec | None:
    try:
        found = (finder.find_spec(name, search) for finder in sys.meta_path)
        return next((spec for spec in found if spec is not None), None)
    except (ImportError, ValueError):
        return None


def _no_module(own: OwnNetwork, called: str) -> UserError:
    from dfkd_fast.catalog import MODELS, OTHERS

    return UserError(f"{called}: no module {own.place}; choose {one_of([*MODELS, *OTHERS])}")


def _reach(folder: Path) -> None:
    """Let code import what lies beside it: before what lies beside others' code, and behind everything else, so that
    no name of Python's own is hidden.
    """
    folder = folder.absolute()
    if str(folder) in sys.path and folder not in _REACHED:
        return
    _REACHED[:] = [folder, *(other for other in _REACHED if other != folder)]
    others = {str(other) for other in _REACHED}
    sys.path[:] = [entry for entry in sys.path if entry not in others] + [str(other) for other in _REACHED]


def _imported(file: Path, base: Path, *, late: bool = False) -> Iterator[Path]:
    """The files within `base` that a file's import statements name; `late`: those within functions alone."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # said when it is run
        return
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tops: list[ast.AST] = [node for node in ast.walk(tree) if isinstance(node, functions)] if late else [tree]
    for node in (node for top in tops for node in ast.walk(top)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(base, alias.name)
        elif isinstance(node, ast.ImportFrom):
            folder = base if node.level == 0 else next(iter(file.parents[node.level - 1 :][:1]), None)
            if folder is None:  # it leads above the root: said when it is run
                continue
            for alias in node.names:
                yield from _files(folder, f"{node.module or ''}.{alias.name}".strip("."))


def _files(folder: Path, dotted: str) -> Iterator[Path]:
    """A module's file, and those of the packages that it is in."""
    for part in dotted.split("."):
        folder = folder / part
        yield from (path for path in (folder.with_suffix(".py"), folder / "__init__.py") if path.is_file())


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
