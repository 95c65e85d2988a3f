"""A container's limits, of either version of cgroups and at any level, count for cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.files.limits import available_cores, free_host_memory

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(root: Path, groups: str, files: dict[str, object]) -> Path:
    """A root folder with 9 MB free, a process in `groups`, and the files of its control groups."""
    for name, content in {
        "proc/meminfo": "MemTotal: 16000 kB\nMemAvailable: 9000 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


V2 = {"memory.max": 4_000_000, "memory.current": 3_000_000, "memory.stat": "anon 1000000\ninactive_file 500000"}
V1 = {
    "memory.limit_in_bytes": 4_000_000,
    "memory.usage_in_bytes": 3_000_000,
    "memory.stat": "cache 1\ntotal_inactive_file 500000",
}


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", V2),
        (
            "0::/user.slice/job",
            {f"user.slice/{name}": value for name, value in V2.items()},
        ),  # the limit is the parent's
        ("0::/seen/by/the/host", V2),  # of which the container has the root alone
        ("9:name=systemd:/\n4:memory:/", {f"memory/{name}": value for name, value in V1.items()}),
        ("4:memory:/docker/1a\n0::/", {f"memory/docker/{name}": value for name, value in V1.items()}),
    ],
)
def test_memory_is_what_the_group_has_left(tmp_path: Path, groups: str, files: dict[str, object]) -> None:
    assert free_host_memory(machine(tmp_path, groups, files)) == 1_500_000


@pytest.mark.parametrize(
    "files",
    [{"memory.max": "max"}, {"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 5}],
)
def test_no_limit_leaves_the_machines(tmp_path: Path, files: dict[str, object]) -> None:
    assert free_host_memory(machine(tmp_path, "4:memory:/\n0::/", files)) == 9000 * 1024


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, CORES),
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": 90_000, "cpu,cpuacct/cpu.cfs_period_us": 100_000}, 1),
        ("3:cpu:/x", {"cpu/x/cpu.cfs_quota_us": -1, "cpu/x/cpu.cfs_period_us": 100_000}, CORES),
        ("", {}, CORES),
    ],
)
def test_cores_are_the_quota_rounded_up(tmp_path: Path, groups: str, files: dict[str, object], cores: int) -> None:
    assert available_cores(machine(tmp_path, groups, files)) == cores


def test_threads_follow_the_quota_unless_somebody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("dfkd_fast.device.runtime.available_cores", lambda: 1)
    try:
        torch.set_num_threads(3)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        make_runtime(device="cpu")
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        make_runtime(device="cpu", threads=2)
        assert torch.get_num_threads() == 2
        make_runtime(device="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
