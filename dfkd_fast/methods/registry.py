"""Methods of other people beside ours: named in Python, or by the entry points of a distribution of theirs."""

from __future__ import annotations

import inspect
import re
import sys
from hashlib import sha256

from dfkd_fast.catalog import FACTS, METHODS, MethodFacts
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method, MethodConfig

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_OURS = "dfkd_fast."


def register_method(name: str, method: type[Method]) -> None:
    """Let a method be used by a name, as ours are: in `distill`, `synthesize` and this process's command lines.

    `method` stands at the top level of its module (a notebook's cell is one), beside its recipe `<Class>Config`, a
    frozen dataclass of `MethodConfig`. The same class again, as a cell that is run anew makes it, takes its place. A
    distribution names its methods instead as entry points of the group `dfkd_fast.methods`: `name = "module:Class"`.

    Raises UserError for a name that is none or is taken, and for a class that is no method.
    """
    called = f"register_method {name}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{called}: choose a name of small letters, digits, - and _")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"{called}: {method!r} is no class below dfkd_fast.Method")
    module = sys.modules[method.__module__]
    config = getattr(module, f"{method.__name__}Config", None)
    if getattr(module, method.__name__, None) is not method:
        raise UserError(f"{called}: {method.__qualname__} stands within something else; put it at its module's top")
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise UserError(f"{called}: no recipe {method.__name__}Config, a dataclass of MethodConfig, beside it")
    if not isinstance(getattr(method, "paper", None), str):
        raise UserError(f"{called}: {method.__name__}.paper is missing; say where it is published, or that it is not")
    place = f"{method.__module__}:{method.__name__}"
    if METHODS.get(name, place) != place:
        raise UserError(f"{called}: that name is taken by {METHODS[name]}; choose another")
    known = next((other for other, where in METHODS.items() if where == place), name)
    if known != name:
        raise UserError(f"{called}: {place} is registered as {known} already")
    METHODS[name] = place
    if not place.startswith(_OURS):
        FACTS[name] = _facts(method)


def third_party_code(name: str) -> dict[str, str]:
    """What stands for the code of a method that is not ours in a run's identity; {} for ours."""
    module, _, cls = METHODS[name].partition(":")
    if module.startswith(_OURS):
        return {}
    found = getattr(sys.modules[module], cls)
    try:  # of the module all, but of a notebook only what these cells say
        config = getattr(sys.modules[module], f"{cls}Config")
        parts = [found, config] if module == "__main__" else [sys.modules[module]]
        source = "".join(map(inspect.getsource, parts))
    except (OSError, TypeError):
        return {f"method {name}": "its source cannot be read"}
    return {f"method {name}": sha256(source.encode()).hexdigest()}


def _facts(method: type[Method]) -> MethodFacts:
    return MethodFacts(
        method.__name__,
        "not ours",
        method.paper,
        loop=method.loop,
        batchnorm="or --bn-weight 0" if method.needs.batchnorm else "no",
        text=bool(method.needs.text),
        real_images=method.needs.real_images,
    )
