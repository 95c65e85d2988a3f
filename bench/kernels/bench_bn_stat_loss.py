"""The statistics loss of a whole network from its layers' moments, forward and backward, against a loop over layers."""

from __future__ import annotations

import pytest
import torch
from report import Goal
from torch import Tensor

from dfkd_kernels import Moments, bn_stat_loss

# channels of the BatchNorms of a ResNet-34 and of a ResNet-50
RESNET34 = (64,) * 7 + (128,) * 9 + (256,) * 13 + (512,) * 7
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
RESNET50 = (64, *(c for width, blocks in STAGES for c in (*(width, width, 4 * width) * blocks, 4 * width)))
Targets = list[tuple[Tensor, Tensor]]


def by_layer(moments: list[Moments], targets: Targets) -> Tensor:
    """Two norms a layer, as the published codes add them up."""
    terms = []
    for layer, (mean, var) in zip(moments, targets, strict=True):
        terms.append(torch.norm(mean - layer.mean(), 2) + torch.norm(var - layer.var(), 2))
    return torch.stack(terms).sum()


@pytest.mark.parametrize("channels", [RESNET34, RESNET50], ids=["resnet34", "resnet50"])
def bench_loss(channels, compare, device, request):
    count = torch.tensor(800.0, device=device)
    moments, targets, sums = [], [], []
    for size in channels:
        x = torch.randn(800, size, device=device)
        sums += [x.sum(0).requires_grad_(), x.square().sum(0).requires_grad_()]
        moments.append(Moments(sums[-2], sums[-1], torch.zeros(size, device=device), count))
        targets.append((torch.zeros(size, device=device), torch.full((size,), 0.5, device=device)))
    forms = {"by layer": by_layer, "ours": bn_stat_loss}
    torch.testing.assert_close(by_layer(moments, targets), bn_stat_loss(moments, targets))
    variants = {
        name: lambda form=form: torch.autograd.grad(form(moments, targets), sums) for name, form in forms.items()
    }
    goals = (Goal(numerator="by layer", denominator="ours", bound=1.0),)
    name = f"bn_stat_loss {request.node.callspec.id}"
    compare(name, variants, shape=(len(channels), sum(channels)), dtype=torch.float32, goals=goals, inner=5)
