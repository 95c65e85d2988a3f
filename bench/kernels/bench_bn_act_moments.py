"""BatchNorm, ReLU and the statistics of one layer, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from report import Goal, Row
from statistics_loss import distance, naive_statistics, one_pass_statistics
from timing import graphed
from torch import Tensor, nn

from dfkd_kernels import batch_moments, bn_act_moments, bn_stat_loss

SHAPE = (128, 64, 32, 32)
NAIVE, OURS = "naive hook", "ours"
ROWS = (
    (torch.float32, torch.contiguous_format, 3.0),
    (torch.float32, torch.channels_last, 3.0),
    (torch.bfloat16, torch.channels_last, 5.0),
)


class Layer:
    """One BatchNorm's tensors and a gradient that comes back to it."""

    def __init__(self, shape, dtype, memory_format, device) -> None:
        self.norm = nn.BatchNorm2d(shape[1], device=device).eval().requires_grad_(False)
        self.norm.running_mean.normal_(0, 0.1)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.x, self.dy = (torch.randn(shape, device=device).to(dtype, memory_format=memory_format) for _ in range(2))

    def step(self, forward):
        """forward(x) -> (y, loss); the gradient with respect to x of both."""

        def run() -> Tensor:
            x = self.x.detach().requires_grad_()
            y, loss = forward(x)
            return torch.autograd.grad([y, loss], x, [self.dy, torch.ones_like(loss)])[0]

        return run

    def eager(self, statistics):
        def forward(x):
            y = F.relu(self.norm(x))
            return y, distance(self.norm, *statistics(x))

        return self.step(forward)

    def compiled(self):
        norm = self.norm

        @torch.compile(fullgraph=True, dynamic=False)
        def forward(x):
            return F.relu(norm(x)), distance(norm, *one_pass_statistics(x))

        return self.step(forward)

    def ours(self):
        norm = self.norm

        def forward(x):
            y, moments = bn_act_moments(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps, act="relu"
            )
            return y, bn_stat_loss([moments], [(norm.running_mean, norm.running_var)])

        return self.step(forward)


@pytest.mark.parametrize(("dtype", "memory_format", "bound"), ROWS)
def bench_layer(dtype, memory_format, bound, compare, device):
    layer = Layer(SHAPE, dtype, memory_format, device)
    variants = {
        NAIVE: layer.eager(naive_statistics),
        "var_mean hook": layer.eager(one_pass_statistics),
        "compiled var_mean": layer.compiled(),
        OURS: layer.ours(),
    }
    layout = "nhwc" if memory_format == torch.channels_last else "nchw"
    goals = (Goal(numerator=NAIVE, denominator=OURS, bound=bound),) if device.type == "cpu" else ()
    compare(f"bn_act_moments {layout}", variants, shape=SHAPE, dtype=dtype, goals=goals)


@pytest.mark.parametrize(("dtype", "memory_format"), [row[:2] for row in ROWS])
def bench_batch_moments(dtype, memory_format, compare, device):
    """The statistics alone, for code that keeps its own BatchNorm."""
    layer = Layer(SHAPE, dtype, memory_format, device)

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        moments = batch_moments(x, layer.norm.running_mean)
        return moments.mean(), moments.var()

    def gradient(statistics):
        def run() -> Tensor:
            x = layer.x.detach().requires_grad_()
            mean, var = statistics(x)
            return torch.autograd.grad(mean.sum() + var.sum(), x)[0]

        return run

    variants = {NAIVE: naive_statistics, "var_mean hook": one_pass_statistics, OURS: ours}
    layout = "nhwc" if memory_format == torch.channels_last else "nchw"
    goals = (Goal(numerator=NAIVE, denominator=OURS, bound=1.0),) if device.type == "cpu" else ()
    timed = {name: gradient(statistics) for name, statistics in variants.items()}
    compare(f"batch_moments {layout}", timed, shape=SHAPE, dtype=dtype, goals=goals)


# BN inputs of ResNet-34 and ResNet-50 at 112 pixels, batch 200, above 20 MB in bf16
LARGE = ((200, 64, 56, 56), (200, 64, 28, 28), (200, 256, 28, 28), (200, 512, 14, 14))


@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: "x".join(map(str, shape)))
def bench_bandwidth(shape, compare, device, on_gpu):
    # a copy moves 2 tensors; forward (x -> y) and backward (dy, x -> dx) together move 5
    goal = Goal(numerator="copy", denominator=OURS, bound=0.85, factor=2.5, label="bandwidth / copy's bandwidth")
    on_gpu(Row(name="bn_act_moments nhwc", shape=shape, dtype="bfloat16", goals=(goal,)))
    layer = Layer(shape, torch.bfloat16, torch.channels_last, device)
    target = torch.empty_like(layer.x)
    variants = {"copy": lambda: target.copy_(layer.x), OURS: graphed(layer.ours())}
    row = compare("bn_act_moments nhwc", variants, shape=shape, dtype=torch.bfloat16, goals=(goal,))
    size = layer.x.numel() * layer.x.element_size()
    row.numbers = {"copy, GB/s": 2e-9 * size / row.medians["copy"], "ours, GB/s": 5e-9 * size / row.medians[OURS]}
