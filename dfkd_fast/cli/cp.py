"""`dfkd-fast cp METHOD/PRESET FILE.toml`: write a preset as a config file, to be changed and trained by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dfkd_fast.cli.cat import USAGE, config_text
from dfkd_fast.config.flag_help import HELP
from dfkd_fast.errors import UserError
from dfkd_fast.files.write import write_file
from dfkd_fast.messages.refusals import disk_error
from dfkd_fast.messages.terminal import command, page, show


def run(arguments: Sequence[str]) -> int:
    """Write a preset to a file that is not there yet."""
    if not arguments or arguments[0] in HELP:
        page(USAGE)
        return 0
    if len(arguments) != 2:
        raise UserError(f"cp: expected METHOD/PRESET FILE.toml, not {len(arguments)} words")
    text, file = config_text(arguments[0], "cp"), Path(arguments[1])
    if file.exists():
        raise UserError(f"cp {file}: is there already; choose another name")
    if not file.parent.is_dir():
        raise UserError(f"cp {file}: there is no folder {file.parent}")
    try:
        write_file(file, text.encode())
    except OSError as error:
        raise disk_error(error, file.parent, flag="cp") from error
    show(f"wrote {file}; to train by it: {command('train', '--config', file)}")
    return 0
