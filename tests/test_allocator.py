"""jemalloc is offered where it is installed and nothing else than the C library's allocator is in use."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import pytest

from dfkd_fast.benchmark.dry_run import _offers
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.config.sources import default_config
from dfkd_fast.device import allocator
from dfkd_fast.device.allocator import preloaded_allocator, unused_jemalloc
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo

MAPS = "7f0-7f1 r-xp 00000000 00:1c 12  /usr/lib/x86_64-linux-gnu/{}\n7f2-7f3 rw-p 00000000 00:00 0 [heap]\n"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("libjemalloc.so.2", "jemalloc"),
        ("libtcmalloc_minimal.so.4", "tcmalloc"),
        ("libmimalloc.so.2.1", "mimalloc"),
        ("libc.so.6", ""),
        ("jemalloc/libother.so", ""),
    ],
)
def test_what_is_preloaded(file: str, found: str) -> None:
    assert preloaded_allocator(MAPS.format(file)) == found


def test_it_is_offered_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = {"jemalloc": "libjemalloc.so.2"}
    monkeypatch.setattr(ctypes.util, "find_library", library.get)
    monkeypatch.setattr(allocator, "preloaded_allocator", lambda maps: "")
    config, info = default_config("zskt"), ModelInfo(name="cnn", num_classes=10, image_size=32, mean=(0,), std=(1,))

    def lines() -> list[str]:
        runtime = make_runtime(device="cpu", precision="fp32", threads=1)
        return list(_offers(config, info, runtime, TimingWindow(), 1.0))

    if not Path("/proc/self/maps").exists():
        assert lines() == []
        return
    assert [line.partition(" ")[0] for line in lines()] == ["libjemalloc.so.2"]
    assert "LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:-1," in lines()[0]
    monkeypatch.setattr(allocator, "preloaded_allocator", lambda maps: "tcmalloc")
    assert (unused_jemalloc(), lines()) == ("", [])
    monkeypatch.setattr(allocator, "preloaded_allocator", lambda maps: "")
    library.clear()
    assert (unused_jemalloc(), lines()) == ("", [])
