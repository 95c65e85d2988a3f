"""`PrioritySampler`: prioritised sampling of pool slots, exact for any capacity, without host synchronisation.

The operators below it own no state: they write leaves, empty slots and draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import native_ops, pick
from ..checks import check_float, check_range, check_same_device, check_vector
from ..registration import Operator
from . import reference

# With many rows the Triton form compares each with each other to find repeated slots: beyond this torch's scatter wins.
MAX_TRITON_ROWS = 32768


class PrioritySampler:
    """Draws slots with probability proportional to their priority (Schaul et al., 2016; SSD-KD, Eq. 4-6).

    A slot's leaf is (|delta| + eps)^alpha, or 0 while the slot is empty. All state is on one device: the leaves (4
    bytes a slot) and a tree of their sums and counts (about 1/4 byte a slot), recomputed from the leaves, so that no
    error builds up.
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
        """An empty sampler.

        Args:
            capacity: number of slots, at least 1.
            alpha: exponent of the priorities, 0 (uniform) or more.
            beta: exponent of the importance weights, 0 (none) to 1 (full correction).
            eps: added to |delta|, positive, so that every written slot can be drawn.
            device: where all tensors are and indices come from; None: torch's default.

        Raises:
            ValueError: an argument out of its range.
        """
        if capacity < 1:
            raise ValueError(f"capacity: {capacity}, expected 1 or more slots")
        if not alpha >= 0:
            raise ValueError(f"alpha: {alpha}, expected 0 or more")
        if not beta >= 0:
            raise ValueError(f"beta: {beta}, expected 0 or more")
        if not eps > 0:
            raise ValueError(f"eps: {eps}, expected a positive number")
        self.capacity, self.alpha, self.beta, self.eps = capacity, float(alpha), float(beta), float(eps)
        self.leaves, self.sums, self.counts = reference.allocate(capacity, device)
        # 0 between calls: how many programs of a running kernel have done their part; the last one writes the tree
        self._arrivals = self.leaves.new_zeros(1, dtype=torch.int32)

    def update(self, indices: Tensor, deltas: Tensor) -> None:
        """Give slots new leaves; a slot named twice gets the larger one, and a delta that is not finite counts as 0.

        Args:
            indices: (n,) int64 in [0, capacity).
            deltas: (n,), floating.

        Raises:
            ValueError: a wrong shape, dtype or device, named; (on the CPU) an index out of range.
        """
        self._check_indices(indices)
        check_float("deltas", deltas)
        if deltas.shape != indices.shape:
            raise ValueError(f"deltas: shape {tuple(deltas.shape)}, expected indices' {tuple(indices.shape)}")
        check_same_device("deltas", deltas, "the sampler", self.leaves)
        self.write_back(indices, deltas.detach(), None)

    def clear(self, indices: Tensor) -> None:
        """Empty the slots `indices` (n,) int64: they are not drawn until they are updated again.

        Raises:
            ValueError: a wrong shape, dtype or device, named; (on the CPU) an index out of range.
        """
        self._check_indices(indices)
        clear(*self._tree(), indices, self.backend())

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n slots independently, with replacement.

        P(i) = leaf_i / sum of the leaves; an empty slot is never drawn.

        Args:
            n: 1 or more.
            generator: of the sampler's device; None: torch's default one, the only choice inside torch.compile.

        Returns:
            indices (n,) int64, and is_weights (n,) float32 = (N P(i))^-beta over the N filled slots, not normalised.

        Raises:
            ValueError: n below 1; (on the CPU) no filled slot. Elsewhere, where looking would synchronise, the weights
                of an empty sampler are NaN.
        """
        if n < 1:
            raise ValueError(f"n: {n}, expected 1 or more")
        uniforms = torch.rand(n, dtype=torch.float64, device=self.leaves.device, generator=generator)
        result: tuple[Tensor, Tensor] = sample(*self._tree(), uniforms, self.beta, self.backend())
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors to save: leaves and tree as they are, so that a resumed run draws the same bits."""
        return {"leaves": self.leaves, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore, in place, what `state_dict` gave.

        Raises:
            ValueError: a tensor is missing or has another shape, which means another capacity.
        """
        for name, own in self.state_dict().items():
            if name not in state:
                raise ValueError(f"state: {name} is missing")
            if state[name].shape != own.shape:
                shapes = f"{tuple(state[name].shape)}, expected {tuple(own.shape)} for capacity {self.capacity}"
                raise ValueError(f"state: {name} has shape {shapes}")
        for name, own in self.state_dict().items():
            own.copy_(state[name])

    def write_back(self, indices: Tensor, deltas: Tensor, is_weights: Tensor | None) -> None:
        """`update` with is_weights * deltas, from checked arguments."""
        update(*self._tree(), indices, deltas, is_weights, self.alpha, self.eps, self.backend())

    def destination(self) -> tuple[Any, ...]:
        """What an operator needs to write priorities: leaves, sums, counts, arrivals, capacity, alpha, eps."""
        return self.leaves, self.sums, self.counts, self._arrivals, self.capacity, self.alpha, self.eps

    def backend(self) -> str:
        """The backend that runs it: "reference", "triton" or "native"."""
        return pick("priority", self.leaves.device.type, torch.float32)

    def _tree(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.leaves, self.sums, self.counts, self.capacity

    def _check_indices(self, indices: Tensor) -> None:
        if indices.dim() != 1:
            raise ValueError(f"indices: shape {tuple(indices.shape)}, expected (n,)")
        check_vector("indices", indices, torch.int64, len(indices))
        check_same_device("indices", indices, "the sampler", self.leaves)


def _launch_update(
    leaves: Tensor,
    sums: Tensor,
    counts: Tensor,
    capacity: int,
    indices: Tensor,
    deltas: Tensor,
    is_weights: Tensor | None,
    alpha: float,
    eps: float,
    backend: str,
) -> None:
    if len(indices) == 0:
        return
    check_range("indices", indices, capacity)
    tree, deltas = (leaves, sums, counts, capacity), deltas.float()
    if backend == "triton" and len(indices) <= MAX_TRITON_ROWS:
        from . import launch

        launch.update(*tree, indices.contiguous(), deltas.contiguous(), is_weights, alpha, eps)
        return
    if is_weights is not None:
        deltas = deltas * is_weights
    if backend == "native":
        native_ops().priority_update(*tree, indices.contiguous(), deltas.contiguous(), alpha, eps)
    else:
        reference.update(*tree, indices, deltas, alpha, eps)


def _launch_clear(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor, backend: str) -> None:
    if len(indices) == 0:
        return
    check_range("indices", indices, capacity)
    arguments = (leaves, sums, counts, capacity, indices.contiguous())
    if backend == "native":
        native_ops().priority_clear(*arguments)
    elif backend == "triton":
        from . import launch

        launch.clear(*arguments)
    else:
        reference.clear(*arguments)


def _launch_sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float, backend: str
) -> tuple[Tensor, Tensor]:
    if counts.device.type == "cpu" and not counts[-reference.FANOUT :].any():
        raise ValueError("sample: every slot is empty; update() some first")
    arguments = (leaves, sums, counts, capacity, uniforms, beta)
    if backend == "native":
        return native_ops().priority_sample(*arguments)
    if backend == "triton":
        from . import launch

        return launch.sample(*arguments)
    return reference.sample(*arguments)


def _fake_nothing(*_: Any) -> None:
    return None


def _fake_sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(uniforms, dtype=torch.int64), torch.empty_like(uniforms, dtype=torch.float32)


_TREE = "Tensor(a!) leaves, Tensor(b!) sums, Tensor(c!) counts, int capacity"
update = Operator(
    f"priority_update({_TREE}, Tensor indices, Tensor deltas, Tensor? is_weights, float alpha, float eps, "
    "str backend) -> ()",
    _launch_update,
    _fake_nothing,
)
clear = Operator(f"priority_clear({_TREE}, Tensor indices, str backend) -> ()", _launch_clear, _fake_nothing)
sample = Operator(
    "priority_sample(Tensor leaves, Tensor sums, Tensor counts, int capacity, Tensor uniforms, float beta, "
    "str backend) -> (Tensor indices, Tensor is_weights)",
    _launch_sample,
    _fake_sample,
)
