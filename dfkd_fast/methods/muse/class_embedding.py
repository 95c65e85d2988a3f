"""Class embeddings, the projection of a student's features onto them, and the losses that pull and push those."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.errors import UserError

CLIP_SEPARATION = 0.03
"""the smallest distance between CLIP's embeddings of two CIFAR-10 classes, which MUSE's radii are given for"""
_ROWS = 1024
"""classes whose distances to all others are held at once"""


class ClassEmbedding(nn.Module):
    """The classes' embeddings (K, D), a linear map of the student's features to them, and the in-out game around them.

    MUSE (Tran et al., 2024, section 3.3). Which vectors it compares is not written down; this follows LANDER (Tran et
    al., CVPR 2024), where its bounding loss comes from: raw text embeddings, and a Linear(student_features, D), `side`,
    that learns with the student. `radii` are (inner, outer) distances (MSE), for embeddings of CLIP's scale.

    `rescale` brings `centres` to that scale: the smallest distance of two classes becomes `CLIP_SEPARATION`. With
    `learned` the centres are rescaled too, and `centres` only gives their shape and dtype: see `learn`.
    Raises UserError, naming `flag`, where two classes have the same embedding and so no scale.
    """

    centres: Tensor
    scale: Tensor
    known: Tensor

    def __init__(
        self,
        student_features: int,
        centres: Tensor,
        *,
        radii: tuple[float, float],
        rescale: bool = False,
        learned: bool = False,
        per_sample: bool = False,
        flag: str = "--text",
    ) -> None:
        super().__init__()
        self.radii, self.learned, self.per_sample = radii, learned, per_sample
        self.register_buffer("centres", centres.clone(), persistent=learned)
        self.register_buffer("scale", centres.new_ones(()), persistent=learned)
        self.register_buffer("known", torch.full((len(centres),), not learned), persistent=learned)
        if rescale and not learned:
            if not separation(centres):
                raise UserError(f"{flag}: two classes have the same embedding; choose orthogonal or one-hot")
            self._rescale()
        self.side = nn.Linear(student_features, centres.shape[1])

    def attraction(self, features: Tensor, labels: Tensor) -> Tensor:
        """Eq. 10, what the student minimises: how far its pooled features (B, d) are from their class beyond the inner
        radius -> scalar.
        """
        embedded = self.side(features)
        return bounding(embedded, self._of(labels), self.radii[0], per_sample=self.per_sample)

    def repulsion(self, features: Tensor, labels: Tensor) -> Tensor:
        """Eq. 12, what the generator minimises: how far they are within the outer radius -> scalar. `side` is a
        constant here.
        """
        embedded = F.linear(features, self.side.weight.detach(), self.side.bias.detach())
        return repelling(embedded, self._of(labels), self.radii[1], per_sample=self.per_sample)

    def repulsion_in_teacher(self, features: Tensor, labels: Tensor) -> Tensor:
        """Eq. 12 of the teacher's own pooled features (B, D), the space that learned centres lie in -> scalar."""
        assert self.learned, "other centres lie in another space"
        return repelling(features * self.scale, self._of(labels), self.radii[1], per_sample=self.per_sample)

    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor, *, last: bool = True) -> None:
        """Take the classes' centres from the teacher's pooled features (B, D), each once: when it is first seen.

        A centre is the mean over its class's images in the batch. Until all classes are known, all centres are 0: the
        scale, which compares each with each, is looked for with the `last` images.
        """
        members = F.one_hot(labels, len(self.centres)).to(self.centres.dtype)
        counts = members.sum(0)
        means = members.T @ features.to(self.centres.dtype) / counts.clamp_min(1)[:, None]
        torch.where(((counts > 0) & ~self.known)[:, None], means, self.centres, out=self.centres)
        self.known.logical_or_(counts > 0)
        if last:
            self._rescale()

    def _of(self, labels: Tensor) -> Tensor:
        return self.centres[labels] * self.scale

    @torch.no_grad()
    def _rescale(self) -> None:
        scale = (CLIP_SEPARATION / separation(self.centres)).sqrt()
        self.scale.copy_(torch.where(self.known.all(), scale, 0.0))


def bounding(embedded: Tensor, centres: Tensor, radius: float, *, per_sample: bool = False) -> Tensor:
    """max(0, MSE - radius): nothing inside the radius, then growing. Embeddings and centres (B, D) -> scalar.

    MUSE (Tran et al., 2024), Eqs. 9 and 10 (L_ed): what the student minimises. The MSE is the mean over batch and
    dimensions, as in LANDER (Tran et al., CVPR 2024), where the bounding loss comes from; with `per_sample` each image
    has its own radius.
    """
    return torch.relu(_mse(embedded, centres, per_sample) - radius).mean()


def repelling(embedded: Tensor, centres: Tensor, radius: float, *, per_sample: bool = False) -> Tensor:
    """max(0, radius - MSE): nothing outside the radius. Embeddings and centres (B, D) -> scalar.

    MUSE, Eq. 12 (L_aed): what the generator minimises.
    """
    return torch.relu(radius - _mse(embedded, centres, per_sample)).mean()


def separation(centres: Tensor) -> Tensor:
    """The smallest MSE between two classes' embeddings (K, D) -> scalar; MUSE's unit of radius (CLIP: about 0.03).

    Takes K^2 D / 2 differences, and memory for 1024 K distances.
    """
    nearest = centres.new_full((), torch.inf)
    for start in range(0, len(centres), _ROWS):
        rows, others = centres[start : start + _ROWS], centres[start:]  # each pair of blocks once
        # by differences: the faster form by products would not give 0 for two equal embeddings
        distances = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.minimum(nearest, distances.fill_diagonal_(torch.inf).min())
    return nearest.square() / centres.shape[1]


def _mse(embedded: Tensor, centres: Tensor, per_sample: bool) -> Tensor:
    wide = torch.promote_types(embedded.dtype, torch.float32)
    squares = (embedded.to(wide) - centres.to(wide)).square()
    return squares.mean(1) if per_sample else squares.mean()
