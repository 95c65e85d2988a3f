"""A failure in a phase is one line that names a setting; earlier work is kept, and nothing that holds NaN or infinity
is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import teacher_file, tiny  # noqa: F401 - a fixture
from torch import Tensor

from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.nayer import NayerConfig
from dfkd_fast.training.checkpoints.checkpoint import latest_checkpoint
from dfkd_fast.training.failures import check_finite, explained, is_out_of_memory
from dfkd_fast.training.inner import InnerLoop
from dfkd_fast.training.ranks import share_of_rank
from dfkd_fast.training.student import StudentTrainer
from dfkd_fast.training.train import train


@pytest.fixture
def config(teacher_file: Path, tmp_path: Path) -> Any:  # noqa: F811
    return tiny("nayer", teacher_file, tmp_path / "run")


def fail(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(
    ("owner", "name", "message", "kept"),
    [
        (StudentTrainer, "step", "--method.batch-size 23: distillation of epoch 2 ran out of memory", "synthesis"),
        (InnerLoop, "step", "--method.synthesis-batch-size 23: synthesis of epoch 1 ran out of memory", None),
    ],
)
def test_out_of_memory(
    config: Any, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, message: str, kept: str | None
) -> None:
    """The phase before is on the disk, and the run goes on from there once there is memory."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(UserError, match=message):
            train(config)
    checkpoint = latest_checkpoint(config.run_folder / "checkpoints")
    assert (checkpoint and checkpoint.phase) == kept
    train(config, resume=True)
    assert (config.run_folder / "student.safetensors").exists()


def test_the_flag_has_the_batch_of_all_processes(config: Any, runtime: Runtime) -> None:
    two = replace(runtime, world_size=2)
    share = share_of_rank(replace(config.method, synthesis_batch_size=24, batch_size=46), 2)
    message = r"^--method\.batch-size 46: distillation of epoch 1 ran out of memory"
    with pytest.raises(UserError, match=message), explained("distillation", 0, share, two):
        fail()


def test_a_real_allocation_that_fails() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("rates", "message", "kept"),
    [
        ({"student_lr": 1e38}, r"--method.student-lr 1e\+38: distillation of epoch 2 diverged", "synthesis"),
        ({"generator_lr": 1e38}, r"--method.generator-lr 1e\+38: synthesis of epoch 1 diverged", None),
    ],
)
def test_divergence_reaches_no_checkpoint(config: Any, rates: dict[str, float], message: str, kept: str | None) -> None:
    """A loss that is no longer a number stops the run where its phase ends, before anything of it is kept."""
    with pytest.raises(UserError, match=message):
        train(replace(config, method=replace(config.method, **rates)))
    checkpoint = latest_checkpoint(config.run_folder / "checkpoints")
    assert (checkpoint and checkpoint.phase) == kept
    if checkpoint:
        assert all(value.isfinite().all() for value in checkpoint.tensors.values() if value.is_floating_point())


def test_nan_in_the_student_loss(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single step is enough."""
    step, calls = StudentTrainer.step, iter(range(100))

    def poisoned(self: StudentTrainer, batches: Any) -> dict[str, Tensor]:
        if next(calls) == 1:
            for batch in batches.values():
                batch.images[0, 0, 0, 0] = torch.nan
        return step(self, batches)

    monkeypatch.setattr(StudentTrainer, "step", poisoned)
    with pytest.raises(UserError, match="distillation of epoch 2 diverged"):
        train(config)


def test_numbers_that_are_not_finite() -> None:
    state = [torch.zeros(3), torch.zeros(0), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bfloat16)]
    check_finite("synthesis", 0, state, NayerConfig())
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(UserError, match=r"--method.generator-lr 0.004: synthesis of epoch 1"):
            check_finite("synthesis", 0, [*state, torch.tensor([0.0, bad])], NayerConfig())


def test_compile_failure() -> None:
    def backend(*_: object) -> Any:
        raise NotImplementedError("no such kernel")

    runtime = replace(make_runtime(device="cpu"), compilation="default")
    step = torch.compile(lambda x: x + 1, backend=backend)
    with (
        pytest.raises(
            UserError, match=r"--compile default: synthesis of epoch 3 could not be compiled .*--compile off"
        ),
        explained("synthesis", 2, NayerConfig(), runtime),
    ):
        step(torch.ones(2))


def test_other_errors_stay_as_they_are() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        explained("synthesis", 0, NayerConfig(), make_runtime(device="cpu")),
    ):
        _ = 1 / 0
