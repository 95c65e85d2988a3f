"""A frozen teacher, forward and input gradient, with the statistics loss: ours, by hooks, compiled, and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from report import Goal, Row
from statistics_loss import (
    FusedNetwork,
    HookedNetwork,
    InlineNetwork,
    calibrated,
    input_gradient,
    naive_statistics,
    one_pass_statistics,
    plain_network,
)
from timing import Variants, graphed, medians
from torch import Tensor, nn

from dfkd_fast.models import cifar
from dfkd_fast.models.torchvision_cpu import ensure_importable

NAIVE, ONE_PASS, COMPILED = "naive hooks", "var_mean hooks", "compiled var_mean"
PLAIN, FUSED, OURS = "eager, no loss", "fused, no loss", "ours"


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        ensure_importable()
        import torchvision

        return torchvision.models.get_model(name, weights=None)

    return build


def at_least(numerator: str, bound: float) -> Goal:
    return Goal(numerator=numerator, denominator=OURS, bound=bound)


def at_most(denominator: str, bound: float) -> Goal:
    return Goal(numerator=OURS, denominator=denominator, bound=bound, sense="at most")


def variants_of(network: nn.Module, images: Tensor) -> Variants:
    """One call per way to the loss, all on the same weights."""
    compiled = torch.compile(InlineNetwork(network), fullgraph=True, dynamic=False)
    networks = {
        PLAIN: plain_network(network),
        NAIVE: HookedNetwork(network, naive_statistics),
        ONE_PASS: HookedNetwork(network, one_pass_statistics),
        COMPILED: compiled,
        FUSED: FusedNetwork(network, with_loss=False),
        OURS: FusedNetwork(network),
    }
    return {name: input_gradient(run, images) for name, run in networks.items()}


CPU_ROWS = (
    (lambda: cifar.wrn40_2(100), "wrn40_2", (100, 3, 32, 32), (at_least(NAIVE, 4.5), at_most(PLAIN, 1.0))),
    (lambda: cifar.resnet18(100), "resnet18", (64, 3, 32, 32), (at_least(NAIVE, 3.0), at_most(PLAIN, 1.05))),
    (torchvision_model("resnet34"), "resnet34", (16, 3, 112, 112), (at_least(NAIVE, 3.0), at_most(PLAIN, 1.05))),
)
GPU_ROWS = (
    ("resnet34", (200, 3, 112, 112), (at_least(NAIVE, 1.8), at_least(COMPILED, 1.0), at_most(FUSED, 1.1))),
    ("resnet50", (200, 3, 112, 112), (at_least(NAIVE, 2.3), at_least(COMPILED, 1.0), at_most(FUSED, 1.1))),
)


def prepared(build: Callable[..., nn.Module], shape: tuple[int, ...], device: torch.device) -> tuple[nn.Module, Tensor]:
    """The network in bf16 channels-last on the device, and images for it."""
    network = calibrated(build(), shape).to(device, torch.bfloat16, memory_format=torch.channels_last)
    images = torch.randn(shape, device=device).to(torch.bfloat16, memory_format=torch.channels_last)
    return network, images


@pytest.mark.parametrize(("build", "name", "shape", "goals"), CPU_ROWS, ids=[row[1] for row in CPU_ROWS])
def bench_teacher_on_cpu(build, name, shape, goals, compare, device):
    if device.type != "cpu":
        pytest.skip("a row of the CPU")
    variants = variants_of(*prepared(build, shape, device))
    compare(f"{name} teacher", variants, shape=shape, dtype=torch.bfloat16, goals=goals)


@pytest.mark.parametrize(("name", "shape", "goals"), GPU_ROWS, ids=[row[0] for row in GPU_ROWS])
def bench_teacher_on_gpu(name, shape, goals, compare, device, on_gpu):
    on_gpu(Row(name=f"{name} teacher", shape=shape, dtype="bfloat16", goals=goals))
    variants = variants_of(*prepared(torchvision_model(name), shape, device))
    row = compare(f"{name} teacher", variants, shape=shape, dtype=torch.bfloat16, goals=goals)
    # Without the host's time: what the loss adds to the fused pass, in kernels alone.
    replays = {name: graphed(variants[name]) for name in (NAIVE, COMPILED, FUSED, OURS)}
    replayed = medians(replays, device, rounds=20)
    row.numbers = {
        "share of the loss, graphed": 1 - replayed[FUSED] / replayed[OURS],
        "naive hooks / ours, graphed": replayed[NAIVE] / replayed[OURS],
        "compiled var_mean / ours, graphed": replayed[COMPILED] / replayed[OURS],
    }
