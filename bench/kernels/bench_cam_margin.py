"""The margin loss on the label's class activation map, forward and backward, against two ways to write it in torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from report import Goal
from torch import Tensor

from dfkd_kernels import cam_margin_loss

# the last feature map of a ResNet-34 and of a ResNet-50 at 112 pixels (the first also at 32 pixels, in CIFAR's form)
SHAPES = ((200, 512, 4, 4), (200, 2048, 4, 4))
CLASSES = 100


def by_product(features: Tensor, class_weights: Tensor, labels: Tensor) -> Tensor:
    """Weighted channels, added up: the map as CAM codes write it."""
    maps = (features * class_weights[labels][:, :, None, None]).sum(1)
    return F.relu(1.0 - maps.float()).mean()


def by_matmul(features: Tensor, class_weights: Tensor, labels: Tensor) -> Tensor:
    """A batched matrix product: the fewest operators."""
    maps = torch.bmm(class_weights[labels].unsqueeze(1), features.flatten(2))
    return F.relu(1.0 - maps.float()).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[1]} channels")
def bench_loss(shape, dtype, compare, device):
    features = torch.rand(shape, device=device).to(dtype, memory_format=torch.channels_last).requires_grad_()
    class_weights = torch.randn(CLASSES, shape[1], device=device).to(dtype) / shape[1] ** 0.5
    labels = torch.randint(0, CLASSES, shape[:1], device=device)
    forms = {
        "by product": by_product,
        "by matmul": by_matmul,
        "compiled": torch.compile(by_product, fullgraph=True, dynamic=False),
        "ours": cam_margin_loss,
    }
    losses = [form(features, class_weights, labels) for form in forms.values()]
    torch.testing.assert_close(torch.stack(losses), losses[-1].expand(len(losses)), rtol=1e-2, atol=0)
    variants = {
        name: lambda form=form: torch.autograd.grad(form(features, class_weights, labels), features)
        for name, form in forms.items()
    }
    goals = tuple(Goal(numerator=form, denominator="ours", bound=1.0) for form in ("by product", "by matmul"))
    compare("cam_margin_loss nhwc", variants, shape=shape, dtype=dtype, goals=goals if device.type == "cpu" else ())
