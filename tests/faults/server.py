"""Runs command lines in forked children, so that torch is imported once: `python server.py`, with the shim preloaded.

Each line on stdin is a JSON request: `args` of dfkd-fast, `output` (a file for what it prints), `folder` (the working
directory), `limit` and `kill_after` in seconds, and, where the fault layer is to act, `root`, `journal`, `how`, `at`
and `code`. The answer is one JSON line: `status` (negative: the signal; null: the limit was passed), `seconds`,
`memory` (MiB, the peak of the child), `handles` (the most open files that were seen). A request with `here` is run by
this process itself, for what it then has imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import torch

from dfkd_fast.cli.main import main
from dfkd_fast.training import run as run_parts
from dfkd_fast.training.records import run_record


def child(request: dict[str, Any]) -> int:
    """Run the command line in this process; returns its status."""
    handle = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(request["folder"])
    os.environ |= request.get("environment", {})
    try:
        if "root" in request:
            arm = ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_arm
            root, journal = request["root"].encode(), request.get("journal", "").encode()
            arm(root, journal, request.get("how", 0), ctypes.c_long(request.get("at", 0)), request.get("code", 0))
        return main(request["args"])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and say how the child ended."""
    start = time.monotonic()
    if request.get("here"):
        os.chdir(request["folder"])
        with open(request["output"], "w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
            status = main(request["args"])
        return {"status": status, "seconds": time.monotonic() - start, "memory": 0, "handles": 0}
    pid = os.fork()
    if pid == 0:
        status = child(request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    kill_at, limit = request.get("kill_after"), request.get("limit", 120)
    late = False
    handles, looked = 0, start
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        spent = time.monotonic() - start
        if not ended and time.monotonic() - looked > 0.2:
            looked, handles = time.monotonic(), max(handles, len(os.listdir(f"/proc/{pid}/fd")))
        if ended:
            break
        if (kill_at is not None and spent > kill_at) or spent > limit:
            late = spent > limit
            os.kill(pid, signal.SIGKILL)
            kill_at, limit = None, limit + 60
        time.sleep(0.002)
    code = None if late else os.waitstatus_to_exitcode(status)
    return {"status": code, "seconds": round(spent, 3), "memory": usage.ru_maxrss // 1024, "handles": handles}


def remember(module: Any, name: str) -> None:
    """Measure once what a run says of its speed: that takes as long as all the rest, and no file has a part in it."""
    known: dict[Any, Any] = {}
    measure = getattr(module, name)

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = type(args[0])
        if key not in known:
            known[key] = measure(*args, **kwargs)
        return known[key]

    setattr(module, name, remembered)


def serve() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(1)
    remember(run_parts, "count_step_flops")
    remember(run_record, "matmul_rate")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
