"""`--devices N`: the same command in N processes, one for each GPU or for a part of the cores, under torchrun's agent.

The message of a failure is printed once: ranks leave their own lines in a folder (`report`), the streams of all but
the first go to files there, and torchrun's reports are not printed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd_fast.cli.report import REPORTS, collect_reports, report_exit
from dfkd_fast.config.train import CONFIG_FILE
from dfkd_fast.errors import UserError
from dfkd_fast.files.limits import available_cores
from dfkd_fast.messages.terminal import command, page

GRACE = 60
"""seconds that ranks have for the end of their step when they are asked to stop"""


def count_devices(asked: str, device: str) -> int:
    """How many processes `--devices` asks for: a number, or `auto`: every GPU of this machine, on a CPU one.

    `device` is the run's `--device`. Raises UserError for what cannot be had here.
    """
    import torch

    if torch.distributed.is_torchelastic_launched():
        raise UserError(f"--devices {asked}: torchrun has started these processes already; leave it out")
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    if asked == "auto":
        return gpus or 1
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(f"--devices {asked}: choose a number of 1 or more, or auto")
    count = int(asked)
    if count > 1 and device.startswith("cuda:"):
        raise UserError(f"--devices {asked}: --device {device} is one GPU; choose --device cuda")
    if gpus and count > gpus:
        have = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise UserError(f"--devices {asked}: this machine has {have}; choose up to {gpus}, or --device cpu")
    return count


def launch(arguments: Sequence[str], count: int, folder: Path) -> int:
    """Run `dfkd-fast train` with these arguments in `count` processes; returns the exit status of the whole.

    `folder` is the run's. A signal goes to every process once, and the run ends as a single one does.
    """
    import torch.distributed.launcher.api as launcher
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    logging.disable(logging.ERROR)  # the agent's own: what it does about a process that has ended
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-ranks-") as reports:
        os.environ[REPORTS] = reports
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
        config = launcher.LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(reports, redirects=dict.fromkeys(range(1, count), Std.ALL), tee={0: Std.ERR}),
            log_line_prefix_template=" ",  # of what rank 0 writes to stderr; an empty one would mean the default
            shutdown_timeout=GRACE,
        )
        command = ("-m", "dfkd_fast", "train", *arguments)
        try:
            launcher.elastic_launch(config, sys.executable)(*command)
        except (ChildFailedError, SignalException) as end:
            del os.environ[REPORTS]  # from here on this process speaks
            if isinstance(end, SignalException):
                return _stopped(Path(reports), signal.Signals(end.sigval), folder)
            return _explain(Path(reports), end.failures, count, folder)
    return 0


def _explain(reports: Path, failures: Mapping[int, Any], count: int, folder: Path) -> int:
    """Say why the ranks ended, the cause and not its consequences; returns the exit status."""
    found = collect_reports(reports)
    for kind in ("mistake", "stopped"):
        for report in found:
            if report["kind"] == kind and not (kind == "stopped" and _killed(failures)):
                return report_exit(report["text"], status=report["status"])
    for rank, failure in sorted(failures.items()):
        if failure.exitcode == 1:  # a bug: one traceback, and rank 0's is on the console
            if "Traceback" not in _stderr(reports, 0):
                page(_stderr(reports, rank), end="", file=sys.stderr)
            return 1
    killed = _killed(failures)
    if killed:
        rank, number = killed[0]
        page(_stderr(reports, rank) if rank else "", end="", file=sys.stderr)
        name = signal.Signals(number).name
        memory = ", which is what happens when memory runs out" if number == signal.SIGKILL else ""
        return report_exit(
            f"process {rank} of {count} was ended by {name}{memory}{_go_on(folder)}", status=128 + number
        )
    return report_exit(found[0]["text"] if found else f"a process of {count} has ended{_go_on(folder)}", status=2)


def _stopped(reports: Path, number: signal.Signals, folder: Path) -> int:
    words = [report["text"] for report in collect_reports(reports) if report["kind"] == "stopped"]
    return report_exit(words[0] if words else f"stopped by {number.name}{_go_on(folder)}", status=128 + number)


def _killed(failures: Mapping[int, Any]) -> list[tuple[int, int]]:
    """Rank and signal of the processes that a signal has ended, in the order of their ends; last those that the agent
    may have stopped itself: by SIGTERM, and by SIGKILL those that did not heed it in time.
    """
    ended = [(rank, -failure.exitcode) for rank, failure in sorted(failures.items()) if failure.exitcode < 0]
    return sorted(ended, key=lambda each: (each[1] == signal.SIGTERM, failures[each[0]].timestamp))


def _stderr(reports: Path, rank: int) -> str:
    """What a rank has written to stderr."""
    return "".join(file.read_text(errors="replace") for file in reports.glob(f"**/{rank}/stderr.log"))


def _go_on(folder: Path) -> str:
    if not (folder / CONFIG_FILE).exists():
        return " before anything was written"
    return f"; the last phase boundary is on disk, to go on: {command('train', '--resume', folder)}"
