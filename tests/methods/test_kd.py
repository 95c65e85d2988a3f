"""KD on real images: what it reads, once and in order, from memory or from a file; its row "Student"; its counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import check_golden
from rounds import Rounds
from torch import nn
from torch.nn import functional as F
from toy_networks import INFO

from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.methods.base import CollectedImages, Setup
from dfkd_fast.methods.kd import Kd, KdConfig
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch

CONFIG = KdConfig(synthesis_batch_size=4, ce_weight=0.1)


@pytest.fixture
def collected() -> CollectedImages:
    torch.manual_seed(9)
    return CollectedImages.noise(INFO, 10)


@pytest.fixture
def method(setup: Setup, collected: CollectedImages, runtime: Any) -> Kd:
    return runtime.place(Kd(CONFIG, setup._replace(collected=collected)))


def filled(method: Kd) -> tuple[torch.Tensor, torch.Tensor]:
    made = list(method.synthesize(0))
    return torch.cat([batch.images for batch in made]), torch.cat([batch.labels for batch in made])


def test_every_image_comes_once_and_as_it_is(method: Kd, collected: CollectedImages) -> None:
    images, labels = filled(method)
    assert torch.equal((images * 255).round().byte().permute(0, 2, 3, 1), collected.pixels)
    assert torch.equal(labels, collected.labels)
    assert list(method.synthesize(1)) == []
    (plan,) = method.pools()
    batches = len(list(method.synthesize(0)))
    assert (plan.capacity, plan.fill_images, plan.fill_batches, plan.policy) == (10, 10, batches, "ring")


def test_images_in_a_file_are_the_same(method: Kd, setup: Setup, collected: CollectedImages, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(collected.pixels.numpy().tobytes())
    rows = ImageRows(file, tuple(collected.pixels.shape))
    other = Kd(CONFIG, setup._replace(collected=collected._replace(pixels=rows)))
    for mine, theirs in zip(filled(method), filled(other), strict=True):
        assert torch.equal(mine, theirs)


def test_the_row_student_learns_from_labels_alone(method: Kd) -> None:
    method.config = replace(CONFIG, kd_weight=0.0, ce_weight=1.0)
    logits, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 3, 0])
    batch = PoolBatch(torch.empty(5, 3, 16, 16), labels, torch.arange(5), {})
    terms = method.student_loss(batch, NetOutput(torch.randn(5, 4).double()), NetOutput(logits))
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, labels))


def test_nothing_to_learn_is_refused(setup: Setup, collected: CollectedImages) -> None:
    with pytest.raises(UserError, match=r"^--method\.kd-weight 0: with --method\.ce-weight 0 nothing is learned"):
        Kd(replace(CONFIG, kd_weight=0.0, ce_weight=0.0), setup._replace(collected=collected))


def test_no_images_but_the_collected_are_asked_for() -> None:
    config = load_config(default_config("kd"), preset="cifar10", flags=["--collected-share", "0.1"])
    assert config.method.student_steps == 39  # one pass over 5,000, as the preset's 391 are over 50,000


def test_dry_run_with_batches_as_large_as_the_made_up_collection(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's own batch of 256 fills the pool at once."""
    flags = "--preset cifar10 --collected digits --teacher cnn --student cnn_s --num-classes 10 --image-size 32"
    network = "--mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 --device cpu --dry-run --student-steps 3"
    assert main(["train", "kd", *flags.split(), *network.split()]) == 0
    assert "distillation" in capsys.readouterr().out


def test_golden(method: Kd, student: nn.Module, runtime: Any) -> None:
    """No synthesis step: what enters the pool, and the terms of a batch of it."""
    Rounds(method, runtime)
    images, labels = filled(method)
    view = method.augment.normalize(images.double())
    batch = PoolBatch(view, labels, torch.arange(len(view)), {})
    terms = method.student_loss(batch, method.teacher(view, moments=False), NetOutput(student(view)))
    losses = torch.stack([terms[name].detach() for name in ("kd", "ce")])
    check_golden("kd", {"losses": losses, "images": images.double().mean((1, 2, 3))})
