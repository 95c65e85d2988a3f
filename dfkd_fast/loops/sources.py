"""The code of a user's own networks in a run: a resumed run goes on with the same code, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfkd_fast.config import TrainConfig
from dfkd_fast.errors import UserError
from dfkd_fast.files import write_file
from dfkd_fast.models.own_code import source_files
from dfkd_fast.own_networks import own_network

SOURCES_FILE = "sources.json"

Sources = dict[str, dict[str, str]]
"""by `teacher` and `student`, where they are the user's own: files with their SHA-256"""


def code_of(config: TrainConfig[Any]) -> Sources:
    """The files of a config's own networks. Raises UserError where one is not there."""
    own = {role: own_network(spec) for role, spec in (("teacher", config.teacher), ("student", config.student))}
    return {role: source_files(found, f"--{role}") for role, found in own.items() if found is not None}


def write_sources(folder: Path, config: TrainConfig[Any]) -> None:
    """Write into a run folder which code its networks are; nothing where they are none of the user's own."""
    sources = code_of(config)
    if sources:
        write_file(folder / SOURCES_FILE, json.dumps(sources, indent=1))


def check_sources(folder: Path, config: TrainConfig[Any], flag: str, hint: str) -> None:
    """Raise UserError, naming `flag` and the files, where that code is not what it was when the run began.

    Reads it and runs none of it.
    """
    sources = code_of(config)
    if not sources:
        return
    try:
        before: Sources = json.loads((folder / SOURCES_FILE).read_text(encoding="utf-8"))
        changed = [
            name
            for role, files in sources.items()
            for name in sorted(files.keys() | before[role].keys())
            if files.get(name) != before[role].get(name)
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{flag} {folder}: its {SOURCES_FILE} cannot be read, so its networks' code is not known"
        ) from None
    if changed:
        raise UserError(
            f"{flag} {folder}: the code of its networks is not what it was: {', '.join(changed[:3])}; {hint}"
        )
