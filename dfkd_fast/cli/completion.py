"""`dfkd-fast completion SHELL`: what a shell runs so that the tab key completes commands, flags and their values.

The shell's own part is three lines: it asks `dfkd-fast completion --words ...` what may stand next.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dfkd_fast
from dfkd_fast.catalog import METHODS, MODELS, presets
from dfkd_fast.cli.ls import SECTIONS
from dfkd_fast.cli.train import TrainCommand
from dfkd_fast.config.flag_help import HELP, choices_of
from dfkd_fast.config.flags import flag_types
from dfkd_fast.config.sources import default_config
from dfkd_fast.errors import unknown
from dfkd_fast.files.cache import cache_folder
from dfkd_fast.files.write import make_folder, write_file
from dfkd_fast.messages.terminal import page, show
from dfkd_fast.models.zoo.cards import PREFIX, ZOO

USAGE = """usage: dfkd-fast completion bash|zsh|fish

Prints a script for the shell. To have it in every shell:
  bash: dfkd-fast completion bash > ~/.local/share/bash-completion/completions/dfkd-fast
  zsh:  dfkd-fast completion zsh > a file _dfkd-fast in a folder of $fpath
  fish: dfkd-fast completion fish > ~/.config/fish/completions/dfkd-fast.fish"""

SCRIPTS = {
    "bash": """_dfkd_fast() {
    mapfile -t COMPREPLY < <(dfkd-fast completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _dfkd_fast dfkd-fast""",
    "zsh": """#compdef dfkd-fast
_dfkd_fast() {
    local -a found
    found=(${(f)"$(dfkd-fast completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    (( $#found )) && compadd -a found || _files
}
compdef _dfkd_fast dfkd-fast""",
    "fish": """function __dfkd_fast
    set -l words (commandline -opc) (commandline -ct)
    dfkd-fast completion --words $words[2..] 2>/dev/null
end
complete -c dfkd-fast -a '(__dfkd_fast)'""",
}


def run(arguments: Sequence[str]) -> int:
    """Print a shell's script, or with `--words` the words that may stand at the end of a command line."""
    if not arguments or arguments[0] in HELP:
        page(USAGE)
        return 0
    if arguments[0] == "--words":
        for word in candidates(arguments[1:]):
            show(word)
        return 0
    if arguments[0] not in SCRIPTS:
        raise unknown("completion", arguments[0], SCRIPTS)
    page(SCRIPTS[arguments[0]])
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last of `words`, which follow `dfkd-fast`; nothing where it is a path or text."""
    *before, last = words or [""]
    return [word for word in _possible(before, last) if word.startswith(last)]


def _possible(before: Sequence[str], last: str) -> Iterable[str]:
    if len(before) < 2 and not last.startswith("-"):
        return _heads(before)
    command, first = (*before, "", "")[:2]
    flags = _flags(command, first)
    if last.startswith("-"):
        return [*flags, *HELP[1:]]
    flag = before[-1]
    if flag == "--preset" and first in METHODS:
        return presets(first)
    if flag in ("--teacher", "--student", "--network"):
        return [*MODELS, *(f"{PREFIX}{name}" for name in ZOO), "tv:", "timm:"]
    return flags.get(flag, ())


def _heads(before: Sequence[str]) -> Sequence[str]:
    """Words that may follow a command's name, or the names of all."""
    from dfkd_fast.cli.main import COMMANDS

    if not before:
        return list(COMMANDS)
    after: dict[str, Sequence[str]] = {
        "train": list(METHODS),
        "teacher": ("train", "info"),
        "bench": ("methods",),
        "pool": ("info", "verify", "export", "import"),
        "ls": list(SECTIONS),
        "completion": list(SCRIPTS),
    }
    if before[0] == "doctor":
        return [*MODELS, *(f"{PREFIX}{name}" for name in ZOO)]
    return after.get(before[0], ())


def _flags(command: str, first: str) -> dict[str, Sequence[str]]:
    """Each flag of a command with the words that its value may be, where they can be listed."""
    if command == "train":
        return _words_of(TrainCommand()) | (_method_flags(first) if first in METHODS else {})
    place = OPTIONS.get((command, first)) or OPTIONS.get((command, ""))
    if place is None:
        return {}
    module, name = place.split(":")
    return _words_of(getattr(importlib.import_module(f"dfkd_fast.cli.{module}"), name)())


def _words_of(config: Any, short: str = "") -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {flag: choices_of(hint) for flag, hint in flag_types(config).items()}
    bare = {f"--{flag.removeprefix(short)}": words for flag, words in found.items() if short and flag.startswith(short)}
    return bare | found


def _method_flags(method: str) -> dict[str, Sequence[str]]:
    """The flags of a method's runs. Its file brings torch with it, seconds for each press of the key: they are kept in
    the cache, by the time of the newest file.
    """
    package = Path(dfkd_fast.__file__).parent
    newest = max(file.stat().st_mtime_ns for file in package.rglob("*.py"))
    kept = cache_folder("completion") / f"{method}-{newest}.json"
    if kept.is_file():
        known: dict[str, Sequence[str]] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    found = _words_of(default_config(method), "--method.")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
        make_folder(kept.parent)
        for old in kept.parent.glob(f"{method}-*.json"):
            old.unlink()
        write_file(kept, json.dumps(found).encode())
    return found


OPTIONS = {
    ("eval", ""): "eval:EvalOptions",
    ("export", ""): "export:ExportOptions",
    ("synth", ""): "synth:SynthCommand",
    ("doctor", ""): "doctor:DoctorOptions",
    ("teacher", "train"): "teacher:TeacherOptions",
    ("teacher", "info"): "teacher_info:InfoOptions",
    ("bench", "methods"): "bench:BenchOptions",
    ("pool", "verify"): "pool:VerifyOptions",
    ("pool", "export"): "pool:ExportOptions",
    ("pool", "import"): "pool:ImportOptions",
}
"""command and its first word -> the dataclass of its flags"""
