"""An entry of the speedrun: a TOML file with method, preset and flags, how many seeds, and what its search cost."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import METHODS

FOLDER = Path(__file__).parent / "entries"

FIXED = (
    *("--run-dir", "--data", "--dataset", "--seed", "--threads", "--precision", "--teacher", "--teacher-weights"),
    *("--student", "--train-teacher", "--collected", "--eval.every", "--stop-after-epoch", "--resume", "--config"),
)
"""flags that are the same for all entries, or that would leave the rules"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What takes part, by the name of its file."""

    name: str
    title: str
    method: str
    search: str
    """core-minutes that the choice of its settings has cost, and on what"""
    preset: str = ""
    flags: tuple[str, ...] = ()
    seeds: int = 3

    def arguments(self, seed: int, networks: list[str], data: str) -> list[str]:
        """The run's command line behind `dfkd-fast`."""
        preset = ["--preset", self.preset] if self.preset else []
        same = ["--data", data, "--eval.every", "1", "--seed", str(seed), "--threads", "1", "--precision", "fp32"]
        return ["train", self.method, *preset, *networks, *self.flags, *same]


def read_entry(name: str) -> Entry:
    """An entry by its name in `entries/`, or by the path of its file. Raises SystemExit for what breaks the rules."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        here = ", ".join(names())
        raise SystemExit(f"--entries {name}: {error.strerror}; choose {here}, or the path of a .toml") from None
    except tomllib.TOMLDecodeError as error:
        raise SystemExit(f"--entries {name}: no valid TOML: {error}") from None
    try:
        entry = Entry(name=file.stem, **{**table, "flags": tuple(map(str, table.get("flags", ())))})
    except TypeError as error:
        known = ", ".join(key for key in Entry.__dataclass_fields__ if key != "name")
        raise SystemExit(f"--entries {name}: {str(error).partition('() ')[2]}; its keys are {known}") from None
    if entry.method not in METHODS:
        raise SystemExit(f"--entries {name}: method {entry.method!r}; choose one of {', '.join(METHODS)}")
    broken = [flag for flag in entry.flags if flag.partition("=")[0] in FIXED]
    if broken:
        raise SystemExit(f"--entries {name}: {broken[0]} is the same for all entries; leave it out")
    return entry


def names() -> list[str]:
    """Of all entries in `entries/`."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))
