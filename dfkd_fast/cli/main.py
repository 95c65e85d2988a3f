"""`dfkd-fast`: find the sub-command, run it, and turn a user's mistake into one line on stderr and exit status 2.

A sub-command's module is imported when it is called, and what needs torch inside its function: `--help`, `--version`
and `ls` answer at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from dfkd_fast import __version__
from dfkd_fast.cli.report import report_exit
from dfkd_fast.errors import LostRank, UserError, unknown
from dfkd_fast.messages.refusals import refusal
from dfkd_fast.messages.terminal import page, prepare_streams, show

COMMANDS = {
    "train": "distil a student from a teacher by METHOD, without the teacher's data",
    "eval": "top-1 and top-5 of a run's student, or of any checkpoint, on real images",
    "doctor": "look at a teacher before hours are spent on it, without data",
    "export": "a run's student, or any checkpoint, as ONNX, torch.export, TorchScript or safetensors, and checked",
    "synth": "images of a teacher's classes, without its data and without a student",
    "teacher": "train a teacher on real images, or say what one is",
    "bench": "what the methods cost on this machine, beside the published hours and the arithmetic floor",
    "pool": "look at a pool of images on disk, check and repair it, take images out or in",
    "ls": "list methods, presets, models, the zoo or kernels",
    "cat": "print a preset as a config file",
    "cp": "write a preset as a config file, to be changed",
    "completion": "a script that completes commands and flags in bash, zsh or fish",
}
"""sub-command -> what it does; its code is `dfkd_fast.cli.<name>`, function `run`"""

USAGE = """usage: dfkd-fast COMMAND ...

{commands}

dfkd-fast COMMAND --help says more; dfkd-fast --version prints the version.
Start here: dfkd-fast train nayer --preset digits-quick"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit status."""
    prepare_streams()
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        status = _run(command, rest)
        sys.stdout.flush()  # here, where a closed pipe can still be caught
        return status
    except UserError as error:
        return report_exit(str(error), kind="lost" if isinstance(error, LostRank) else "mistake")
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, MemoryError, RuntimeError) as error:
        line = refusal(error)
        if line is None:
            raise
        return report_exit(line)
    except KeyboardInterrupt:
        return report_exit("interrupted", kind="stopped", status=128 + signal.SIGINT)


def _run(command: str, rest: Sequence[str]) -> int:
    if command in ("-h", "--help"):
        page(USAGE.format(commands="\n".join(f"  {name:11}{text}" for name, text in COMMANDS.items())))
        return 0
    if command == "--version":
        show(f"dfkd-fast {__version__}")
        return 0
    if command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    run = importlib.import_module(f"dfkd_fast.cli.{command}").run
    return run(rest)
