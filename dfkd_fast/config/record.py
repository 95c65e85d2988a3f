"""Records of a config: config.toml in the run folder, and a hash of everything that a run computes.

Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w

from dfkd_fast import __version__
from dfkd_fast.config.own_networks import unplaced
from dfkd_fast.config.setting import former_keys, settings_of
from dfkd_fast.config.train import TrainConfig, flatten
from dfkd_fast.files.write import write_file

FORMAT = 1  # of config.toml

FREE = (
    "stop_after_epoch",
    "threads",
    "run_dir",
    "log.",
    "checkpoint.",
    "compile",
    "bn.fused",
    "cuda_graphs",
    "deterministic",
    "optim.",
    "eval.workers",
    "collected_memory",
)
"""keys, or their beginnings, of what a resumed run may change: none of it touches what the run computes, though it may
add up in another order
"""

MOVABLE = ("data", "dataset", "teacher_weights", "text", "text_model", "class_names", "class_order", "collected")
"""keys that say where something lies: a resumed run may change them, since what is read there is compared"""

BY_MACHINE = ("precision", "device")
"""keys that may leave it to the machine (auto): a resumed run may name what that came to, since that is compared"""

NETWORKS = ("teacher", "student")
"""keys that name a network: of one's own a resumed run may change the place, since its code is compared"""


def write_config(config: TrainConfig[Any], file: Path) -> None:
    """Write every setting as TOML, so that `load_config` of the file over the defaults gives `config` again.

    TOML has no null: a setting that is None is left out, and every such setting defaults to None. The section
    `written` says by what it was written, where relative paths start, and what its settings were.
    """
    about = {"format": FORMAT, "program": __version__, "folder": os.getcwd(), "config_hash": config_hash(config)}
    table: dict[str, Any] = {"written": about, "method": {"name": config.method_name}}
    for key, value in flatten(config):
        section, _, name = key.rpartition(".")
        if value is not None:
            place = table.setdefault(section, {}) if section else table
            place[name] = str(value) if isinstance(value, Path) else value
    write_file(file, tomli_w.dumps(table))


def differences(before: TrainConfig[Any], after: TrainConfig[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value before and value after of each setting that differs between two configs of one method."""
    old = dict(flatten(before))
    for key, value in flatten(after):
        if value != old[key]:
            yield key, old[key], value


def settled(config: TrainConfig[Any]) -> dict[str, str]:
    """Every setting, as text, that a resumed run must keep: all but `FREE`, `MOVABLE` and `BY_MACHINE` keys, the
    method's name, and none that is younger than the run and has the value that it had then. Own networks without where
    they lie.
    """
    elsewhere = (*MOVABLE, *BY_MACHINE)
    values = {key: str(value) for key, value in flatten(config) if not key.startswith(FREE) and key not in elsewhere}
    values |= {key: unplaced(values[key]) for key in NETWORKS}
    return _decisive(config, values)


def config_hash(config: TrainConfig[Any]) -> str:
    """16 hex digits that stand for everything that the run computes: equal for equal configs, `FREE` keys apart."""
    values = {key: str(value) for key, value in flatten(config) if not key.startswith(FREE)}
    text = json.dumps(_decisive(config, values), sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _decisive(config: TrainConfig[Any], values: dict[str, str]) -> dict[str, str]:
    """The method's name and its settings as text, by the names that older runs know, less those that an older run of
    the same did not know.
    """
    then, former = {key: str(stated.formerly) for key, _, stated in settings_of(config)}, former_keys(config)
    known = {former.get(key, key): value for key, value in values.items() if then.get(key) != value}
    return {"method": config.method_name, **known}
