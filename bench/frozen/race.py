"""One network in one dtype: the ways to its input gradient with the statistics loss, timed by turns."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from memory import keep_freed_memory
from networks import DTYPES, build, shape_of
from statistics_loss import (
    FusedNetwork,
    HookedNetwork,
    InlineNetwork,
    calibrated,
    input_gradient,
    naive_statistics,
    plain_network,
)
from timing import Race, Variants
from torch import Tensor, nn

from dfkd_kernels import freeze_teacher

OURS, HOOKS, COMPILED, WITHOUT = "ours", "hooks", "compiled", "without"
"""`freeze_teacher`; NVlabs' hooks; `torch.compile` with var_mean in the graph; the network without the loss"""

PLAIN, FROZEN, FOLDED = "plain", "frozen", "folded"
"""for logits without gradients: the network; `freeze_teacher`; `freeze_teacher(moments=False)`"""

LEAST_TURNS, MOST_TURNS = 5, 15


def prepared(name: str, dtype: str) -> tuple[nn.Module, Tensor]:
    """The network, channels-last, and images for it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    shape = shape_of(name)
    network = calibrated(build(name), shape).to(DTYPES[dtype], memory_format=torch.channels_last)
    images = torch.randn(shape).to(DTYPES[dtype], memory_format=torch.channels_last)
    return network, images


def has_batchnorm(network: nn.Module) -> bool:
    """Whether there is a statistics loss at all."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def compiled_network(network: nn.Module) -> nn.Module:
    """What torch.compile is given: BatchNorms that compute their distance in the graph."""
    inline = InlineNetwork(network) if has_batchnorm(network) else _WithoutLoss(network)
    return torch.compile(inline, dynamic=False)  # type: ignore[return-value]


class _WithoutLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.network(x), None


def compile_once(name: str, dtype: str) -> dict[str, Any]:
    """Fill Inductor's cache; what that took, in seconds of processor time, the compiler's processes included."""
    network, images = prepared(name, dtype)
    before = _seconds()
    input_gradient(compiled_network(network), images)()
    return {"compile_seconds": round(_seconds() - before, 1)}


def variants_of(network: nn.Module, images: Tensor, compiled: bool) -> Variants:
    """One call for each way."""
    bn = has_batchnorm(network)
    networks: dict[str, Any] = {
        OURS: FusedNetwork(network, with_loss=bn),
        WITHOUT: plain_network(network),
        HOOKS: HookedNetwork(network, naive_statistics) if bn else plain_network(network),
    }
    if compiled:
        networks[COMPILED] = compiled_network(network)
    return {way: input_gradient(run, images) for way, run in networks.items()}


def answer_variants(network: nn.Module, images: Tensor) -> Variants:
    """Logits without gradients: the network itself, frozen, and frozen for answers."""
    networks = {
        PLAIN: network,
        FROZEN: freeze_teacher(network),
        FOLDED: freeze_teacher(network, moments=False),
    }

    def run(made: nn.Module, **kwargs: Any) -> Callable[[], object]:
        def step() -> object:
            with torch.no_grad():
                return made(images, **kwargs)

        return step

    return {way: run(made, **({"moments": False} if way == FROZEN else {})) for way, made in networks.items()}


def answers(name: str, dtype: str, *, seconds: float) -> dict[str, Any]:
    """Medians, samples and ratios of logits alone."""
    network, images = prepared(name, dtype)
    return _timed(answer_variants(network, images), seconds, FOLDED) | {"shape": list(images.shape)}


def race(name: str, dtype: str, *, compiled: bool, seconds: float) -> dict[str, Any]:
    """Medians, samples and ratios; `seconds` is the time to spend, warm-up apart."""
    network, images = prepared(name, dtype)
    found = _timed(variants_of(network, images, compiled), seconds, OURS)
    ratios = found["ratios"]
    ratios[f"{OURS} / {WITHOUT}"] = 1 / ratios.pop(f"{WITHOUT} / {OURS}")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return {"shape": list(images.shape), "batchnorms": norms, **found}


def _timed(variants: Variants, seconds: float, ours: str) -> dict[str, Any]:
    """By turns, for about so many seconds; ratios are medians over turns."""
    run = Race(variants, torch.device("cpu"), inner=1)
    turns = max(LEAST_TURNS, min(MOST_TURNS, int(seconds / run.warm_up(2))))
    for _ in range(turns):
        run.round()
    samples = run.seconds
    return {
        "seconds": {way: statistics.median(taken) for way, taken in samples.items()},
        "ratios": {
            f"{way} / {ours}": statistics.median(other / own for other, own in zip(taken, samples[ours], strict=True))
            for way, taken in samples.items()
            if way != ours
        },
        "samples": samples,
    }


def _seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
