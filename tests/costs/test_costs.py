"""Costs of recipes, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config
from dfkd_fast.costs.flops import StepFlops, count_step_flops
from dfkd_fast.costs.peak import matmul_rate
from dfkd_fast.costs.work import RoundKind, SynthesisKind, Work, recipe_work
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.methods.base import CollectedImages, Method, Setup
from dfkd_fast.methods.inner import inners
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.training.assemble import load_method

INFO = ModelInfo(name="cnn", num_classes=4, image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SMALL = {"generator_width": 8, "bank_size": 40, "num_negatives": 10, "buffer_size": 40, "low_res_steps": 2, "jitter": 2}
"""settings that some methods have, so that all are quick"""


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp32", threads=1)


def network(spec: str, info: ModelInfo = INFO) -> nn.Module:
    sizes = {"num_classes": info.num_classes, "image_size": info.image_size, "mean": info.mean, "std": info.std}
    return load_model(spec, **sizes)[0]


@pytest.fixture
def make(runtime: Runtime) -> Callable[..., Method]:
    def build(name: str, **settings: object) -> Method:
        config = default_config(name).method
        known = {key: value for key, value in (SMALL | settings).items() if hasattr(config, key)}
        if hasattr(config, "image_sizes"):
            known["image_sizes"] = (8, 16)[: len(config.image_sizes)]
        method_class = load_method(name)
        embeddings = torch.randn(INFO.num_classes, 512 if method_class.needs.text else 0)
        networks = FrozenNet(network("cnn"), INFO, runtime), frozen_alias(network("cnn_s"))
        setup = Setup(*networks, INFO, embeddings, collected=CollectedImages.noise(INFO, 15))
        return method_class(replace(config, **known), setup)

    return build


def counted(method: Method) -> StepFlops:
    return count_step_flops(method, INFO, teacher="cnn", student="cnn_s")


def work_of(method: Method, epochs: int | None = None) -> Work:
    return recipe_work(method, counted(method).round_steps, epochs)


def kind_of(*, warmup: bool, **variant: bool) -> SynthesisKind:
    """Steps of a method's only inner optimisation."""
    return SynthesisKind(0, tuple(sorted(variant.items())), warmup)


WARM = kind_of(warmup=True, adversarial=False, student_trains=False)
WHOLE, LATER = (kind_of(warmup=False, adversarial=True, student_trains=trains) for trains in (False, True))
"""NAYER's steps: in the warm-up, in an epoch's first round behind it, and in the others"""


def macs(model: nn.Module, image: torch.Tensor) -> list[int]:
    """Multiplications and additions of each convolution and linear layer, in order, for a batch of images."""
    found: list[int] = []

    def add(layer: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        found.append(out.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    with torch.no_grad():
        model.eval()(image)
    return found


def test_work_of_nayer_is_the_papers(make) -> None:
    work = work_of(make("nayer", epochs=320, synthesis_batch_size=400))
    assert work.synthesis_steps == {WARM: 8000, WHOLE: 12000, LATER: 12000}
    assert (work.images, work.student_steps, work.student_epochs) == (320_000, 120_000, 300)


def test_work_of_a_part_of_the_epochs(make) -> None:
    method = make("nayer", epochs=320, synthesis_batch_size=400)
    part = work_of(method, epochs=21)
    first, later = (
        {(kind.warmup): n for kind, n in part.rounds.items() if kind.later == late} for late in (False, True)
    )
    assert (first, later) == ({True: 20, False: 1}, {True: 180, False: 1})
    assert part.student_steps == 400


def test_work_knows_the_cap_of_a_data_ratio(make) -> None:
    """MUSE-S on ImageNet at 10 %: 2000 rounds of 200 images, and no more."""
    values = {"synthesis_batch_size": 200, "full_images": 1000, "data_ratio": 10.0, "epochs": 400, "student_steps": 100}
    method = make("muse-s", **values)
    work = work_of(method)
    assert work.images == 400  # 100 of 16 px are 400 of 8 px
    assert work.student_steps == 360 * 10


def test_work_of_a_method_without_a_pool(make) -> None:
    """200 epochs of 80 generator steps and 400 student steps; the images are those that the student sees."""
    work = work_of(make("dafl"))
    assert work.synthesis_steps == {kind_of(warmup=False, adversarial=True): 200 * 80}
    assert (work.student_steps, work.images) == (200 * 400, 200 * 400 * 256)


def test_work_counts_the_stages_of_a_round(make) -> None:
    work = work_of(make("deepinversion", epochs=2, warmup_epochs=1, warmup_rounds=3, rounds=1, synthesis_steps=10))
    stages = [kind_of(warmup=True, adversarial=False, low_res=low_res) for low_res in (True, False)]
    assert [work.synthesis_steps[stage] for stage in stages] == [6, 24]
    assert work.rounds == {
        RoundKind(ImageSize.of(16), True): 1,
        RoundKind(ImageSize.of(16), True, later=True): 2,
        RoundKind(ImageSize.of(16), False): 1,
    }


def test_student_step_is_two_forwards_and_a_backward(make) -> None:
    """Teacher once, student forward and twice that backward, but for the images, which get no gradient."""
    method = make("nayer", batch_size=24)
    found = counted(method)
    image = torch.randn(24, 3, 16, 16)
    teacher, student = macs(network("cnn"), image), macs(network("cnn_s"), image)
    assert found.student == 2 * (sum(teacher) + 3 * sum(student) - student[0])


def test_what_is_computed_in_fact_is_counted_beside(make) -> None:
    """Upsampling is folded into the convolutions behind it, with four ninths of the FLOPs; cached answers are asked for
    once for each image and not in each step.
    """
    method = make("nayer", synthesis_batch_size=24, batch_size=30, noise_features=20)
    count = partial(count_step_flops, method, INFO, teacher="cnn", student="cnn_s")
    flops, cached = count(), count(cached_answers=3)
    teacher = sum(macs(network("cnn"), torch.randn(1, 3, 16, 16)))
    upsampled = 24 * (64 * 8 * 8 * 9 + 256 * 8 * 4 * 9)
    assert flops.synthesis[WARM] - flops.done.synthesis[WARM] == pytest.approx(2 * 3 * upsampled * 5 / 9)
    assert flops.done.student == flops.student == cached.student
    assert cached.student - cached.done.student == 2 * 30 * teacher
    work = Work()
    work.rounds[RoundKind(ImageSize.of(16), True)] = 5
    assert (cached.of_synthesis(work), cached.done.of_synthesis(work)) == (0, 2 * 3 * 5 * 24 * teacher)


def test_student_step_without_a_pool_makes_its_images(make) -> None:
    method = make("zskt", batch_size=24, latent_dim=20, generator_width=16)
    found = counted(method)
    image = torch.randn(24, 3, 16, 16)
    teacher, student = macs(network("cnn"), image), macs(network("cnn_s"), image)
    # stem, convolutions at 8 and 16 px with their maps upsampled before, RGB
    generator = 24 * (20 * 16 * 16 + 64 * 16 * 8 * 9 + 256 * 8 * 4 * 9 + 256 * 4 * 3 * 9)
    assert found.student == 2 * (generator + sum(teacher) + 3 * sum(student) - student[0])


def test_synthesis_step_has_no_weight_gradients_of_frozen_networks_and_upsamples_plainly(make) -> None:
    method = make("nayer", synthesis_batch_size=24, noise_features=20)
    found = counted(method).synthesis
    image = torch.randn(24, 3, 16, 16)
    teacher, student = sum(macs(network("cnn"), image)), sum(macs(network("cnn_s"), image))
    # noisy layer, stem, convolutions at 8 and 16 px with their maps upsampled before, RGB
    generator = 24 * (512 * 20 + 20 * 8 * 16 + 64 * 8 * 8 * 9 + 256 * 8 * 4 * 9 + 256 * 4 * 3 * 9)
    warm, whole = found[WARM], found[WHOLE]
    assert warm == pytest.approx(2 * (2 * teacher + 3 * generator), rel=0.01)
    assert whole - warm == pytest.approx(2 * 2 * student, rel=0.001)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_counted(make, name: str) -> None:
    method = make(name, epochs=4, warmup_epochs=1, synthesis_batch_size=12, batch_size=12, synthesis_steps=4)
    state = torch.get_rng_state()
    flops = counted(method)
    assert torch.equal(torch.get_rng_state(), state)
    work = recipe_work(method, flops.round_steps)
    assert set(work.synthesis_steps) <= set(flops.synthesis)
    learns = any(True for _ in inners(method))  # in synthesis; KD only reads images
    assert {sum(steps.values()) for steps in flops.round_steps.values()} == ({4} if learns else set())
    assert (flops.of_synthesis(work) > 0) == learns
    assert flops.of_distillation(work) == flops.student * work.student_steps > 0


def test_totals_are_sums_over_kinds() -> None:
    early, late = SynthesisKind(0, (), True), SynthesisKind(0, (), False)
    flops = StepFlops(synthesis={early: 2.0, late: 3.0}, student=5.0, round_steps={})
    work = Work(student_steps=7)
    work.synthesis_steps.update({early: 10, late: 100})
    assert (flops.of_synthesis(work), flops.of_distillation(work)) == (320.0, 35.0)


def test_matrix_products_have_a_rate(runtime: Runtime) -> None:
    assert 1e8 < matmul_rate(runtime) < 1e14
