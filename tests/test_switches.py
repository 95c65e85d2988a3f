"""`--deterministic`: which switches it sets, and what it says of an operator that cannot keep it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.device.switches import named_operator, set_switches
from dfkd_fast.errors import UserError

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every switch of the process is put back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    matmul, strict = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(strict)


def test_without_it_convolutions_are_chosen_by_timing() -> None:
    set_switches(CUDA, "bf16")
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_what_it_sets_on_a_gpu() -> None:
    set_switches(CUDA, "bf16", deterministic=True)
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_switch_of_the_program_stays() -> None:
    torch.use_deterministic_algorithms(True)
    make_runtime(device="cpu")
    assert torch.are_deterministic_algorithms_enabled()


def test_workspaces_that_cannot_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_switches(CUDA, "bf16", deterministic=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0; choose :4096:8 or :16:8, or unset it$"):
        set_switches(CUDA, "bf16", deterministic=True)


def test_it_does_not_go_with_the_compiler() -> None:
    message = r"^--compile default: its kernels are chosen by timing; --deterministic needs off$"
    with pytest.raises(UserError, match=message):
        make_runtime(device="cpu", compilation="default", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_real_operator_is_named() -> None:
    """One of the few that a CPU has no deterministic form of either."""
    make_runtime(device="cpu", deterministic=True)
    target, index = torch.zeros(3), torch.tensor([0, 0])
    with (
        pytest.raises(UserError, match=r"^--deterministic: put_ has no form .*; choose --no-deterministic$"),
        named_operator(),
    ):
        target.put_(index, torch.ones(2), accumulate=False)


def test_cublas_that_was_in_use_and_other_errors() -> None:
    words = "but this operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2. To enable"
    with pytest.raises(UserError, match=r"set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment$"), named_operator():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"), named_operator():
        raise RuntimeError("mat1 and mat2")
