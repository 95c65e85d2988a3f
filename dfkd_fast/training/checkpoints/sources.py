"""The code of a user's own networks in a run: a resumed run goes on with the same code, wherever it lies by now, or not
at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd_fast.config.own_networks import hf_folder, own_network, program_file
from dfkd_fast.config.record import NETWORKS
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import of_file
from dfkd_fast.files.write import write_file
from dfkd_fast.models.own_code import source_files

SOURCES_FILE = "sources.json"

Sources = dict[str, dict[str, str]]
"""by `teacher` and `student`, where they are the user's own: files with their SHA-256, the network's own first"""


def code_of(config: TrainConfig[Any], roles: Sequence[str] = NETWORKS) -> Sources:
    """The files of a config's own networks. Raises UserError where one is not there."""
    specs = {role: str(getattr(config, role)) for role in roles}
    own = {role: own_network(spec) for role, spec in specs.items()}
    code = {role: source_files(found, f"--{role}") for role, found in own.items() if found is not None}
    return code | {role: {file.name: of_file(file)} for role, file in map(_defined, specs.items()) if file is not None}


def _defined(named: tuple[str, str]) -> tuple[str, Path | None]:
    """Of a role and its network: the one file that says what a network on disk computes, where there is one."""
    role, spec = named
    folder = hf_folder(spec)
    file = program_file(spec) if folder is None else folder / "config.json"
    if file is not None and not file.is_file():
        raise UserError(f"--{role} {spec}: no such file")
    return role, file


def write_sources(folder: Path, config: TrainConfig[Any]) -> None:
    """Write into a run folder which code its networks are; nothing where they are none of the user's own."""
    sources = code_of(config)
    if sources:
        write_file(folder / SOURCES_FILE, json.dumps(sources, indent=1))


def check_sources(
    folder: Path, config: TrainConfig[Any], flag: str, hint: str, *, roles: Sequence[str] = NETWORKS
) -> None:
    """Raise UserError, naming `flag` and the files with both hashes, where the code of `roles` is not what it was when
    the run began; where none is there, say how to name its new place.

    Reads it and runs none of it.
    """
    for role in roles:
        try:
            sources = code_of(config, [role])
        except UserError as error:
            anew = f"where it has moved, give --{role} anew, as FILE.py:NAME"
            raise UserError(f"{flag} {folder}: {error}; {anew}") from None
        if not sources:
            continue
        try:
            before: Sources = json.loads((folder / SOURCES_FILE).read_text(encoding="utf-8"))
            changed = list(_changes(before[role], sources[role]))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise UserError(
                f"{flag} {folder}: its {SOURCES_FILE} cannot be read, so its networks' code is not known"
            ) from None
        if changed:
            what = f"the code of its networks is not what it was: {', '.join(changed[:3])}"
            raise UserError(f"{flag} {folder}: {what} (--{role} {getattr(config, role)}); {hint}")


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """What differs, each file with both hashes. The network's own file, the first, may have another name by now."""
    if before == now:  # in any order, as it was once written
        return
    (_, digest), *rest = before.items()
    own, *others = now
    if now[own] != digest:
        yield f"{own} is {_short(now[own])}, was {_short(digest)}"
    known = dict(rest)
    for name in sorted(known.keys() | set(others)):
        found = now[name] if name in others else None
        if found != known.get(name):
            yield f"{name} is {_short(found)}, was {_short(known.get(name))}"


def _short(digest: str | None) -> str:
    return "not there" if digest is None else f"{digest[:12]}..."
