"""Features that tell images apart: the teacher's, their projection, a bank of earlier images' and the contrastive term.

CMI (Fang et al., IJCAI 2021, arXiv:2105.08584).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.models.teacher import FrozenNet, NetOutput


def describe(output: NetOutput) -> Tensor:
    """The spatial means of all maps of each image, side by side: (B, D), in at least float32."""
    means = [value.to(torch.promote_types(value.dtype, torch.float32)).mean((2, 3)) for value in output.maps.values()]
    return torch.cat(means, dim=1)


def description_width(net: FrozenNet, maps: Sequence[str]) -> int:
    """D of `describe` for these maps, found by looking at one image. Raises ValueError for a map that is not there."""
    probe = net.info.blank(next(net.net.parameters()))
    return describe(net(probe, maps=maps, moments=False)).shape[1]


class ProjectionHead(nn.Sequential):
    """Linear - ReLU - Linear: features (B, D) -> (B, out_features) of length 1, in at least float32.

    `stored` (N, D) are the rows that follow, (B + N, out_features) in all. The first layer takes the two one after the
    other, so that no gradient with respect to stored features is computed: N x D x D multiplications that nobody reads.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, in_features), nn.ReLU(), nn.Linear(in_features, out_features))

    def forward(self, features: Tensor, stored: Tensor | None = None) -> Tensor:
        first, *rest = self
        hidden = first(features) if stored is None else torch.cat([first(features), first(stored)])
        for layer in rest:
            hidden = layer(hidden)
        projected: Tensor = hidden
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)


class FeatureBank(nn.Module):
    """A ring of `size` rows of (width,) features on the device; the oldest are overwritten.

    Shapes are static from the start: a draw always has the same number of rows, and says which of them are filled.
    """

    rows: Tensor
    written: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Store features (B, width), B up to the bank's size."""
        slots = torch.arange(len(features), device=self.rows.device) + self.written
        self.rows[slots % len(self.rows)] = features.to(self.rows.dtype)
        self.written += len(features)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw `count` different rows, or all if there are fewer: features (n, width) and whether each is filled (n,).

        Empty rows come only when the filled ones are used up.
        """
        size = len(self.rows)
        empty = torch.arange(size, device=self.rows.device) >= self.written
        keys = torch.where(empty, 2.0, torch.rand(size, device=self.rows.device))
        keys, slots = keys.topk(min(count, size), largest=False, sorted=False)
        return self.rows[slots], keys < 2


def instance_discrimination(
    local_features: Tensor, global_features: Tensor, *, num_new: int, is_filled: Tensor, temperature: float
) -> Tensor:
    """How hard it is to find an image by a part of it: cross-entropy of each local view with all global views.

    CMI (Fang et al., IJCAI 2021, arXiv:2105.08584: L_cr), as released: the mean over the `num_new` new images plus the
    mean over the stored ones, so that many stored images do not dilute the new ones' gradient.

    local_features, global_features (N, D), of length 1, new images first; is_filled (N - num_new,) bool: which stored
    rows count -> scalar, float32 at least. Global features get no gradient. Without a filled row, the new images alone.
    """
    dtype = torch.promote_types(local_features.dtype, torch.float32)
    # N x N numbers, of which each pass over them counts: in place, and one kernel each way
    logits = (local_features @ global_features.detach().mT).to(dtype).div_(temperature)
    counts = torch.cat([is_filled.new_ones(num_new), is_filled])
    logits.add_(torch.where(counts, 0.0, -torch.inf).to(dtype))
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    stored = torch.where(is_filled, losses[num_new:], 0).sum() / is_filled.sum().clamp(min=1)
    return losses[:num_new].mean() + stored
