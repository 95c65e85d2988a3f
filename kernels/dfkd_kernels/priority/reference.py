"""The specification of the priority tree in plain torch, on any device.

A sum tree of fan-out 64 in three flat tensors. `leaves` (float32) holds one priority per slot, 0 = empty. `sums`
(float64) and `counts` (int64) hold, level after level with the lowest first, the sum and the number of filled slots
of 64 children each. A level is padded with zeros to a multiple of 64; the last one has exactly 64 entries.
"""

import torch
from torch import Tensor

FANOUT = 64
SMALLEST = torch.finfo(torch.float32).tiny
LARGEST = torch.finfo(torch.float32).max


def level_sizes(capacity: int) -> list[int]:
    """Entries of each level of `sums` and `counts`, lowest level first, each a multiple of the fan-out."""
    sizes: list[int] = []
    entries = capacity
    while not sizes or sizes[-1] > FANOUT:
        blocks = -(-entries // FANOUT)
        entries = -(-blocks // FANOUT) * FANOUT
        sizes.append(entries)
    return sizes


def allocate(capacity: int, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor]:
    """`leaves`, `sums` and `counts` of an empty tree."""
    blocks, entries = -(-capacity // FANOUT), sum(level_sizes(capacity))
    leaves = torch.zeros(blocks * FANOUT, dtype=torch.float32, device=device)
    return leaves, leaves.new_zeros(entries, dtype=torch.float64), leaves.new_zeros(entries, dtype=torch.int64)


def leaf_values(deltas: Tensor, alpha: float, eps: float) -> Tensor:
    """(|delta| + eps)^alpha in float32, kept positive and finite; a delta that is not finite counts as 0."""
    magnitudes = torch.where(deltas.isfinite(), deltas.abs(), 0).float()
    return ((magnitudes + eps) ** alpha).clamp(SMALLEST, LARGEST)


def update(
    leaves: Tensor,
    sums: Tensor,
    counts: Tensor,
    capacity: int,
    indices: Tensor,
    deltas: Tensor,
    alpha: float,
    eps: float,
) -> None:
    """Write the leaves of `indices` (n,), the largest one where an index is repeated, and bring the tree up to date."""
    write(leaves, sums, counts, capacity, indices, leaf_values(deltas, alpha, eps))


def clear(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor) -> None:
    """Empty the slots `indices` (n,)."""
    write(leaves, sums, counts, capacity, indices, leaves.new_zeros(indices.shape))


def write(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor, values: Tensor) -> None:
    """Set leaves, then recompute each touched entry from its children: sums never drift."""
    leaves[indices] = 0
    leaves.scatter_reduce_(0, indices, values, "amax")
    nodes = indices // FANOUT
    children = leaves.view(-1, FANOUT)[nodes]
    totals, filled = children.sum(1, dtype=torch.float64), (children > 0).sum(1)
    for level_sums, level_counts in zip(_levels(sums, capacity), _levels(counts, capacity), strict=True):
        level_sums[nodes] = totals
        level_counts[nodes] = filled
        nodes = nodes // FANOUT
        if len(level_sums) > FANOUT:
            totals, filled = (level.view(-1, FANOUT)[nodes].sum(1) for level in (level_sums, level_counts))


def sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """One slot per number of `uniforms` (n,) in [0, 1): its index and importance weight (N P)^-beta."""
    total = sums[-FANOUT:].sum()
    remainder = uniforms * total
    nodes = torch.zeros_like(uniforms, dtype=torch.int64)
    places = torch.arange(FANOUT, device=uniforms.device)
    for level in (*reversed(_levels(sums, capacity)), leaves):
        values = level.view(-1, FANOUT)[nodes]
        prefix = values.cumsum(1, dtype=torch.float64)
        # A parallel prefix sum need not be monotonic in the last bit: only a child that holds something may be chosen,
        # and where rounding leads past the last of them, the last one is.
        filled = values > 0
        hit = (prefix > remainder[:, None]) & filled
        first_hit = torch.where(hit, places, FANOUT).amin(1)
        last_filled = torch.where(filled, places, 0).amax(1)
        child = torch.minimum(first_hit, last_filled)
        before = (prefix - values).gather(1, child[:, None]).squeeze(1)
        remainder = (remainder - before).clamp(min=0)
        nodes = nodes * FANOUT + child
    probabilities = leaves[nodes].double() / total
    return nodes, (counts[-FANOUT:].sum() * probabilities).pow(-beta).float()


def _levels(flat: Tensor, capacity: int) -> list[Tensor]:
    return list(flat.split(level_sizes(capacity)))
