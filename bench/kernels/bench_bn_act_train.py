"""Train-mode BatchNorm, activation and residual, forward and backward: torch's own, compiled, cuDNN's, apex's, ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from report import Goal
from torch import Tensor, nn

from dfkd_kernels import bn_act_train

OURS, EAGER, COMPILED = "ours", "eager", "compiled"
SHAPES = {
    "wrn16_1, 32 px, batch 128": (128, 16, 32, 32),
    "wrn16_1, 32 px, batch 256, second stage": (256, 32, 16, 16),
    "resnet18, 64 px, batch 64": (64, 64, 64, 64),
    "resnet18, 64 px, batch 64, last stage": (64, 512, 8, 8),
    "NAYER's generator, 32 px, batch 100": (100, 128, 16, 16),
}
"""inputs of BatchNorm layers"""
ACTIVATIONS = {"NAYER's generator, 32 px, batch 100": "leaky_relu"}
SLOPE = 0.2
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


class Layer:
    """One BatchNorm's tensors and the gradient that comes back to it."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device, *, act: str, residual: bool
    ) -> None:
        self.norm, self.act = nn.BatchNorm2d(shape[1], device=device), act
        tensors = [torch.randn(shape, device=device).to(dtype, memory_format=LAYOUTS[layout]) for _ in range(3)]
        self.x, self.dy, other = tensors
        self.x.requires_grad_()
        self.residual = other.requires_grad_() if residual else None

    def step(self, forward: Callable[[Tensor, Tensor | None], Tensor]) -> Callable[[], object]:
        """The gradients of all that can have one."""
        inputs = [value for value in (self.x, self.norm.weight, self.norm.bias, self.residual) if value is not None]
        return lambda: torch.autograd.grad(forward(self.x, self.residual), inputs, self.dy)

    def eager(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """As networks write it: three calls."""
        y: Tensor = self.norm(x)
        y = y if residual is None else y + residual
        return F.relu(y) if self.act == "relu" else F.leaky_relu(y, SLOPE)

    def ours(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """One call, which leaves `num_batches_tracked` to the layer."""
        norm = self.norm
        running = norm.running_mean, norm.running_var
        return bn_act_train(
            x, *running, norm.weight, norm.bias, eps=norm.eps, residual=residual, act=self.act, negative_slope=SLOPE
        )

    def apex(self) -> Callable[[Tensor, Tensor | None], Tensor] | None:
        """NVIDIA apex's channels-last form with relu and sum (`apex.contrib.groupbn`), half precision; None: not here.

        It reads tensors of shape (N, H, W, C) in memory order.
        """
        if self.x.device.type != "cuda" or self.x.dtype == torch.float32 or self.act != "relu":
            return None
        try:
            module = importlib.import_module("apex.contrib.groupbn.batch_norm")
        except ImportError:
            return None
        norm = module.BatchNorm2d_NHWC(self.x.shape[1], fuse_relu=True, bn_group=1).to(self.x.device)
        norm.load_state_dict(self.norm.state_dict(), strict=False)

        def forward(x: Tensor, residual: Tensor | None) -> Tensor:
            z = None if residual is None else residual.permute(0, 2, 3, 1)
            y: Tensor = norm(x.permute(0, 2, 3, 1), z)
            return y.permute(0, 3, 1, 2)

        return forward


def without_cudnn(step: Callable[[], object]) -> Callable[[], object]:
    """A step by torch's own CUDA kernels."""

    def run() -> None:
        with torch.backends.cudnn.flags(enabled=False):
            step()

    return run


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", SHAPES)
def bench_layer(place, layout, dtype, residual, compare, device):
    act = ACTIVATIONS.get(place, "relu")
    if residual and not place.startswith("resnet18"):
        pytest.skip("these networks have no sum between BatchNorm and activation")
    layer = Layer(SHAPES[place], dtype, layout, device, act=act, residual=residual)
    compiled = torch.compile(layer.eager, fullgraph=True, dynamic=False)
    forms = {EAGER: layer.eager, COMPILED: compiled, OURS: layer.ours}
    apex = layer.apex() if layout == "nhwc" else None
    variants = {name: layer.step(form) for name, form in (forms | ({"apex": apex} if apex else {})).items()}
    if device.type == "cuda":  # there torch's own call is cuDNN's
        variants["eager, without cuDNN"] = without_cudnn(variants[EAGER])
    goals = tuple(Goal(numerator=name, denominator=OURS, bound=1.0) for name in (EAGER, COMPILED))
    name = f"bn_act_train {layout}{' with residual' if residual else ''} ({place})"
    compare(name, variants, shape=SHAPES[place], dtype=dtype, goals=goals)
