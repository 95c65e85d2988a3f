"""`dfkd-fast cat METHOD/PRESET`: print a preset as a config file; `cp` writes it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence

from dfkd_fast.catalog import METHODS, presets
from dfkd_fast.config.data_sets import data_set_of
from dfkd_fast.config.flag_help import HELP
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.messages.terminal import page

USAGE = """usage: dfkd-fast cat METHOD/PRESET
       dfkd-fast cp METHOD/PRESET FILE.toml

cat prints a preset as a config file, cp writes it: change it, and dfkd-fast train --config FILE.toml runs it.
dfkd-fast ls presets METHOD lists presets."""


def run(arguments: Sequence[str]) -> int:
    """Print a preset."""
    if not arguments or arguments[0] in HELP:
        page(USAGE)
        return 0
    if len(arguments) > 1:
        raise UserError(f"cat {arguments[1]}: one preset at a time; dfkd-fast cat METHOD/PRESET")
    page(config_text(arguments[0], "cat"), end="")
    return 0


def config_text(target: str, command: str) -> str:
    """A preset's text as a config file that gives the same settings: the method is named, and the data set that the
    preset's name stands for.
    """
    method, _, preset = target.partition("/")
    if method not in METHODS:
        raise unknown(command, method, METHODS)
    if preset not in presets(method):
        raise unknown(f"{command} {method}/", preset, presets(method))
    text = presets(method)[preset].read_text(encoding="utf-8")
    table = tomllib.loads(text)
    if not re.search(r"^\[method\]$", text, re.MULTILINE):
        text += "\n[method]\n"
    text = re.sub(r"^\[method\]$", f'[method]\nname = "{method}"', text, count=1, flags=re.MULTILINE)
    data_set = data_set_of(preset)
    if data_set and "teacher_data" not in table and not table.get("train_teacher"):
        text = f'teacher_data = "{data_set}"\n{text}'
    return text
