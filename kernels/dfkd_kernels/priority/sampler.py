"""`PrioritySampler`: prioritised sampling of pool slots, exact for any capacity, without host synchronisation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import reference


class PrioritySampler:
    """Draws slots with probability proportional to their priorities (Schaul et al., 2016; SSD-KD, Eq. 4-6).

    A slot's leaf is (|delta| + eps)^alpha, 0 while it is empty; `beta` is the exponent of the importance weights. All
    state is on `device`: the leaves, and a tree of block sums that is recomputed from them, so that no error builds up.
    """

    def __init__(
        self,
        capacity: int,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: 1 or more slots, not {capacity}")
        for name, value in (("alpha", alpha), ("beta", beta), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"{name}: 0 or more, not {value}")
        self.capacity, self.alpha, self.beta, self.eps = capacity, alpha, beta, eps
        self.leaves, self.sums, self.counts = reference.allocate(capacity, device)

    def update(self, indices: Tensor, deltas: Tensor) -> None:
        """Give the slots `indices` (n,) int64 the leaves of `deltas` (n,); a slot named twice gets the larger one.

        A delta that is not finite counts as 0. n = 0 does nothing.
        """
        self._check_indices(indices)
        if deltas.shape != indices.shape or not deltas.is_floating_point():
            raise ValueError(f"deltas: float {tuple(indices.shape)} needed, not {deltas.dtype} {tuple(deltas.shape)}")
        reference.update(*self._tree(), indices, deltas.detach(), self.alpha, self.eps)

    def clear(self, indices: Tensor) -> None:
        """Empty the slots `indices` (n,) int64: they are not drawn until they are updated again."""
        self._check_indices(indices)
        reference.clear(*self._tree(), indices)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n slots independently, with replacement: indices (n,) int64 and is_weights (n,) float32.

        P(i) = leaf_i / sum of leaves, w = (N P)^-beta over the N filled slots, not normalised. An empty slot is never
        drawn. In an empty sampler: ValueError on the CPU; elsewhere, where that would need a synchronisation, NaN
        weights.
        """
        if n < 1:
            raise ValueError(f"n: 1 or more, not {n}")
        uniforms = torch.rand(n, dtype=torch.float64, device=self.leaves.device, generator=generator)
        if self.leaves.device.type == "cpu" and not self.counts[-reference.FANOUT :].any():
            raise ValueError("sample: every slot of the sampler is empty; update() some first")
        return reference.sample(*self._tree(), uniforms, self.beta)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors to save: the whole tree, so that a resumed run draws the same bits."""
        return {"leaves": self.leaves, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore in place what `state_dict` gave; the capacity must be the same."""
        for name, own in self.state_dict().items():
            if name not in state or state[name].shape != own.shape:
                raise ValueError(f"state: {name} {tuple(own.shape)} needed (is the capacity not {self.capacity}?)")
            own.copy_(state[name])

    def _tree(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.leaves, self.sums, self.counts, self.capacity

    def _check_indices(self, indices: Tensor) -> None:
        if indices.ndim != 1 or indices.dtype != torch.int64:
            raise ValueError(f"indices: int64 (n,) needed, not {indices.dtype} {tuple(indices.shape)}")
        if indices.device != self.leaves.device:
            raise ValueError(f"indices: on {indices.device}, but the sampler is on {self.leaves.device}")
