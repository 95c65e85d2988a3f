"""`--synthesis-micro-batches`: a synthesis batch in parts, whose gradients and images are put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rounds import Rounds, begin_round
from tiny_runs import tiny, write_teacher

from dfkd_fast.catalog import METHODS
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.deepinversion import DeepInversion, DeepInversionConfig
from dfkd_fast.methods.nayer import Nayer, NayerConfig
from dfkd_fast.models.teacher import FrozenNet, NetOutput
from dfkd_fast.parallel.global_batch import GlobalBatch, MicroBatches
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.ranks import check_micro_batches
from dfkd_fast.training.train import train

IN_PARTS = [name for name in METHODS if load_method(name).supports.micro_batches]
BATCH = 24


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher.safetensors")


def pixel_gradients(setup: Setup, runtime: Runtime, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients and kept images of one step on pixels; the loss is a mean over images and nothing is drawn."""
    config = DeepInversionConfig(
        synthesis_batch_size=BATCH, synthesis_steps=1, bn_weight=0.0, jitter=0, jitter_flip=False, tv_l2_weight=1e-3
    )
    torch.manual_seed(0)
    method = DeepInversion(config, setup._replace(global_batch=MicroBatches(parts)))
    runtime.place(method)
    engine = Rounds(method, runtime).engine
    engine.step(begin_round(method, 0))
    assert method.pixels.grad is not None
    assert engine.best is not None
    return method.pixels.grad, engine.best


@pytest.mark.parametrize("parts", [2, 4, 12])
def test_without_statistics_parts_are_the_whole(setup: Setup, runtime: Runtime, parts: int) -> None:
    whole, in_parts = (pixel_gradients(setup, runtime, number) for number in (1, parts))
    for first, second in zip(whole, in_parts, strict=True):
        assert first.abs().sum() > 0
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_run_in_parts(name: str, tmp_path: Path, teacher_file: Path) -> None:
    config = tiny(name, teacher_file, tmp_path / name, synthesis_micro_batches=2)
    config = replace(config, method=replace(config.method, synthesis_batch_size=BATCH))
    if name == "muse":
        config = replace(config, method=replace(config.method, batch_shares=(1, 1)))
    folder = train(config)
    assert (folder / "student.safetensors").is_file()


class Counted:
    """A teacher that remembers how many images it saw at once."""

    def __init__(self, teacher: FrozenNet, seen: list[int]) -> None:
        self.teacher, self.seen = teacher, seen

    def __call__(self, view: torch.Tensor) -> NetOutput:
        self.seen.append(len(view))
        return self.teacher(view)


def test_networks_see_parts_and_the_pool_all(setup: Setup, runtime: Runtime) -> None:
    config = NayerConfig(synthesis_batch_size=BATCH, synthesis_steps=2, noise_features=16, generator_width=16)
    method = Nayer(config, setup._replace(global_batch=MicroBatches(3)))
    runtime.place(method)
    seen: list[int] = []
    method.teacher = Counted(method.teacher, seen)  # type: ignore[assignment]
    made = Rounds(method, runtime).round(0)
    assert seen == [BATCH // 3] * 3 * config.synthesis_steps
    assert len(made.images) == len(made.labels) == BATCH


@pytest.mark.parametrize(
    ("name", "batch", "parts", "message"),
    [
        ("nayer", 24, 5, r"^--synthesis-micro-batches 5: batches of 24 images cannot be parted so; choose 1, 2, 3, 4,"),
        ("nayer", 24, 24, r"^--synthesis-micro-batches 24: batches of 24 images .* choose 1, 2, 3, 4, 6, 8 or 12$"),
        ("nayer", 3, 2, r"^--synthesis-micro-batches 2: batches of 3 images cannot be parted so; choose 1$"),
        ("nayer", 24, 0, r"^--synthesis-micro-batches 0: "),
        ("cmi", 24, 2, r"^--synthesis-micro-batches 2: cmi needs its whole batch in one step; choose 1$"),
    ],
)
def test_numbers_that_cannot_be(
    name: str, batch: int, parts: int, message: str, tmp_path: Path, teacher_file: Path
) -> None:
    config = tiny(name, teacher_file, tmp_path / name, synthesis_micro_batches=parts)
    with pytest.raises(UserError, match=message):
        train(replace(config, method=replace(config.method, synthesis_batch_size=batch)))
    assert not (tmp_path / name).exists()


def test_what_parts_do_not_go_with(setup: Setup, runtime: Runtime) -> None:
    """Nor does one part ask anything: a rank may have a single image."""
    config = NayerConfig(synthesis_batch_size=BATCH, noise_features=16, generator_width=16)
    method, together = Nayer(config, setup), replace(runtime, global_batch=GlobalBatch(0, 2))
    for asked, message in ((together, "--bn.scope global rules out"), (replace(runtime, compilation="max"), "max")):
        with pytest.raises(UserError, match=f"^--synthesis-micro-batches 2: .*{message}"):
            check_micro_batches(method, "nayer", 2, asked)
        check_micro_batches(method, "nayer", 1, asked)
    method.config = replace(config, synthesis_batch_size=1)
    check_micro_batches(method, "nayer", 1, runtime)
