"""Classes that fill up together, against one candidate after another in Python; the entropy of votes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfkd_fast.procedural.selection import balanced_choice, rarest_classes, vote_counts, vote_entropy


def one_by_one(votes: list[int], counts: list[int], number: int) -> dict[int, list[int]]:
    """The class that has fewest images takes its next candidate; by class, the candidates that it took."""
    waiting = {label: [i for i, vote in enumerate(votes) if vote == label] for label in range(len(counts))}
    taken: dict[int, list[int]] = {label: [] for label in waiting}
    for _ in range(number):
        label = min((label for label in waiting if waiting[label]), key=lambda label: counts[label])
        taken[label].append(waiting[label].pop(0))
        counts[label] += 1
    return taken


@pytest.mark.parametrize("seed", range(8))
def test_classes_fill_up_together(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.tensor([0.5, 0.2, 0.2, 0.08, 0.02, 0.0])
    votes = torch.multinomial(skewed, 60, replacement=True, generator=generator)
    counts = torch.randint(12, (6,), generator=generator)
    number = 25
    chosen = balanced_choice(votes, counts, number)
    assert len(chosen.unique()) == number
    found = {label: sorted(chosen[votes[chosen] == label].tolist()) for label in range(6)}
    expected = one_by_one(votes.tolist(), counts.tolist(), number)
    ends = [counts[label] + len(found[label]) for label in range(6) if (votes == label).any()]
    others = [counts[label] + len(expected[label]) for label in range(6) if (votes == label).any()]
    assert sorted(ends) == sorted(others), "levels; of classes that are level any may be the last"
    for label, taken in found.items():
        of_class = (votes == label).nonzero().flatten().tolist()
        assert taken == of_class[: len(taken)], "first come, first served"


def test_all_candidates_can_be_taken() -> None:
    votes = torch.tensor([2, 2, 0])
    assert sorted(balanced_choice(votes, torch.zeros(3, dtype=torch.int64), 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("number", [1, 5, 14])
def test_the_rarest_classes_are_named_as_often_as_they_lack(number: int) -> None:
    counts = torch.tensor([4, 0, 7, 1])
    named = vote_counts(rarest_classes(counts, number), 4) + counts
    expected = counts.tolist()
    for _ in range(number):
        expected[expected.index(min(expected))] += 1
    assert sorted(named.tolist()) == sorted(expected)


def entropy(shares: list[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share) / math.log(len(shares))


@pytest.mark.parametrize(("votes", "expected"), [([3, 0, 0], 0.0), ([2, 2, 2], 1.0), ([1, 2, 5], None)])
def test_entropy_of_votes(votes: list[int], expected: float | None) -> None:
    wanted = entropy([vote / sum(votes) for vote in votes]) if expected is None else expected
    assert vote_entropy(torch.tensor(votes)).item() == pytest.approx(wanted, abs=1e-6)


def test_counts_are_a_histogram() -> None:
    votes: Tensor = torch.tensor([1, 1, 3])
    assert vote_counts(votes, 5).tolist() == [0, 2, 0, 1, 0]
    assert vote_counts(votes[:0], 2).tolist() == [0, 0]
