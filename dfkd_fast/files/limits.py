"""The cores and memory that this process may use: of the machine, and of its control group (a container's).

Both versions of cgroups, at every level from the process's own group up to the root. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_V1_UNLIMITED = 2**60
"""bytes; version 1 writes "no limit" as the largest number of pages"""


def available_cores(root: Path = Path("/")) -> int:
    """Cores to compute with, at least one: the process's affinity, and its group's quota rounded up."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups(root, ""):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, int(quota) / int(period))
    for group in _groups(root, "cpu"):
        found = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if found[0] and found[1] and found[0] > 0:  # -1: none
            cores = min(cores, found[0] / found[1])
    return max(1, math.ceil(cores))


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that may be taken without swapping; where several ranks share the machine, one's equal part of them."""
    meminfo = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines())
    if "MemAvailable" in meminfo:
        limits = [int(meminfo["MemAvailable"].split()[0]) * 1024]
    else:
        limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _groups(root, ""):
        limits += _left(group, ("memory.max", "memory.current", "inactive_file"))
    for group in _groups(root, "memory"):
        limits += _left(group, ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return max(0, min(limits)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's word


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it; `controller` "" means version 2.

    Within a container /proc/self/cgroup may name the path that the host sees, of which only the root is mounted.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines() or [f"0:{controller}:/"]:
        _, names, path = line.split(":", 2)
        if controller not in names.split(","):
            continue
        mounts = [top / names, top / controller] if controller else [top, top / "unified"]
        mount = next((folder for folder in mounts if folder.is_dir()), top)
        folder = mount / path.lstrip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(mount) and place.is_dir())


def _left(group: Path, names: tuple[str, str, str]) -> list[int]:
    """Bytes left of a group's limit; pages of files that the kernel would give back count as free. [] without one."""
    limit, used = _number(group / names[0]), _number(group / names[1])
    if limit is None or used is None or limit >= _V1_UNLIMITED:
        return []
    stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
    return [limit - used + int(stat.get(names[2], "0"))]


def _number(file: Path) -> int | None:
    text = _read(file)
    return int(text) if text.removeprefix("-").isdecimal() else None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
