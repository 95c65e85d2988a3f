"""The choice of pictures by a teacher's votes: every class equally often.

What makes a source of pictures good to distil from, says the paper: a flat histogram of the teacher's votes, of which
the entropy over ln K is the measure. Frank, Davis. CVPR 2025. arXiv:2411.12817.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def balanced_choice(votes: Tensor, counts: Tensor, number: int) -> Tensor:
    """Indices (number,) of candidates whose classes are the rarest in a pool, first come, first served.

    `votes` (M,) int64 are the candidates' classes, `counts` (K,) int64 how many images of each class the pool has. Each
    candidate that is taken counts, so that the classes fill up together as far as there are candidates. On the device.
    """
    order = votes.argsort(stable=True)
    sorted_votes = votes[order]
    place = torch.arange(len(votes), device=votes.device)
    turn = torch.empty_like(votes)
    turn[order] = place - torch.searchsorted(sorted_votes, sorted_votes)  # how many of its class come before it
    return (counts[votes] + turn).argsort(stable=True)[:number]


def rarest_classes(counts: Tensor, number: int) -> Tensor:
    """Classes (number,) int64 that a pool with `counts` (K,) lacks most, each once more in it when it is named."""
    classes = len(counts)
    turns = torch.arange(number, device=counts.device)[:, None] + counts  # (number, K): what it has when named again
    return turns.flatten().argsort(stable=True)[:number] % classes


def vote_counts(votes: Tensor, num_classes: int) -> Tensor:
    """How many of the votes (M,) each class has, (K,) int64."""
    zeros = torch.zeros(num_classes, dtype=torch.int64, device=votes.device)
    return zeros.scatter_add_(0, votes, torch.ones_like(votes))


def vote_entropy(counts: Tensor) -> Tensor:
    """Entropy of a histogram of votes (K,) over ln K, from 0 (one class) to 1 (all alike); 0-dim float32."""
    shares = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(shares).sum() / math.log(len(counts))
