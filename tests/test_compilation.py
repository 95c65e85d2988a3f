"""Compiled functions, where their caches lie, and the clock of what is prepared once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd_fast.device import compilation, runtime
from dfkd_fast.device.compilation import CLOCK, PreparationClock, compiled, keep_compile_caches
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError


def test_the_clock_counts_what_is_nested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr(compilation.time, "perf_counter", lambda: next(times))
    clock = PreparationClock()
    with clock.running(), clock.running():
        pass
    with pytest.raises(ZeroDivisionError), clock.running():
        _ = 1 / 0
    assert clock.seconds == 3.0 + 4.0


def test_off_leaves_the_function_alone() -> None:
    assert compiled(torch.relu, "off") is torch.relu


def test_default_compiles_both_ways_and_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward give the plain form's numbers; the time goes to the clock, later calls add none to it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def function(x: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(x * 2 + 1, 0.2).square().sum()

    x = torch.randn(64, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(function(x), x)
    before = CLOCK.seconds
    fast = compiled(function, "default")
    (found,) = torch.autograd.grad(fast(x), x)
    torch.testing.assert_close(found, expected)
    spent = CLOCK.seconds - before
    assert spent > 0
    fast(x).backward()
    assert CLOCK.seconds - before == spent
    assert any(tmp_path.rglob("*.cpp")), "nothing was kept for the next run"
    torch._dynamo.reset()


def test_caches_outlive_the_run_and_what_is_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compile_caches()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compile" / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return tmp_path / "cache"


def test_compile_caches_are_this_users_alone(cache: Path) -> None:
    """Others may not even read it: what lies there is run as code."""
    before = os.umask(0o022)
    try:
        keep_compile_caches()
    finally:
        os.umask(before)
    for folder in (cache / "compile", cache / "compile" / "inductor", cache / "compile" / "triton"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("opened", ["compile", "compile/triton", "."])
def test_caches_that_others_can_write_to_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, opened: str) -> None:
    keep_compile_caches()
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(variable)
    (cache / opened).chmod(0o777)
    words = rf"^--compile: what lies in {cache}/compile/\w+ is run as code, and others can write to {cache / opened};"
    with pytest.raises(UserError, match=words):
        keep_compile_caches()
    (cache / opened).chmod(0o1777)  # sticky: others cannot replace what is there, but add to it
    if opened == ".":
        keep_compile_caches()
    else:
        (cache / "compile").chmod(0o700)
        (cache / opened).chmod(0o770)
        monkeypatch.setattr(compilation, "_is_own_group", lambda _: False)
        with pytest.raises(UserError, match="others can write"):
            keep_compile_caches()


def test_every_run_on_a_gpu_checks_what_triton_keeps(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a run on a CPU that compiles nothing, which makes no folder."""
    make_runtime(device="cpu")
    assert not cache.exists()
    monkeypatch.setattr(runtime, "_pick_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("it went on"))
    shared = cache.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(shared))
    line = f"^--device cuda: what lies in {shared} is run as code, and others can write to {shared}; .* or choose"
    with pytest.raises(UserError, match=line):
        make_runtime(device="cuda")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    with pytest.raises(pytest.fail.Exception, match="it went on"):
        make_runtime(device="cuda")
    assert os.environ["TRITON_CACHE_DIR"] == str(cache / "compile" / "triton")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


@pytest.mark.parametrize(
    ("mode", "owner", "last", "refused"),
    [
        (0o40700, 4711, True, True),  # another user's, whatever its mode
        (0o40755, 0, False, False),  # root can do anything anyway
        (0o41777, 0, False, False),  # /tmp
        (0o41777, 0, True, True),
        (0o40777, 0, False, True),
    ],
)
def test_who_can_write(mode: int, owner: int, last: bool, refused: bool) -> None:
    found = os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert compilation._others_can_write(found, last=last) is refused


def test_a_run_that_compiles_keeps_its_caches(tmp_path: Path) -> None:
    """Whatever else a run imports: Inductor settles on a folder when it is imported, and an optimiser imports it."""
    code = """
import os, torch
from dfkd_fast.optim import OptimizerSpec
from dfkd_fast.device.runtime import make_runtime
make_runtime(device="cpu", compilation="default")
weight = torch.ones(2, requires_grad=True)
OptimizerSpec(kind="adam", groups=[{"params": [weight], "lr": 0.1}]).build()
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""
    outside = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**outside, "DFKD_FAST_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / "compile" / "inductor")
