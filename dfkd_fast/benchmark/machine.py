"""Where and with what a figure was measured."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import torch

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.training.records.run_record import git_sha, versions


def machine_record(runtime: Runtime) -> dict[str, Any]:
    """Device, processor, threads, precision, versions, commit and date, as JSON."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return {
        "device": runtime.describe(),
        "processor": names[0] if names else None,
        "threads": torch.get_num_threads(),
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "versions": versions(),
        "git_sha": git_sha(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
