"""Seeds are functions of their path, and labels are balanced."""

from __future__ import annotations

import random

import numpy as np
import torch

from dfkd_fast.rng import SHARED, balanced_labels, derive_seed, seed_phase


def test_fold_is_a_fixed_function() -> None:
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert (
        len(
            {
                derive_seed(0, "a", 1),
                derive_seed(1, "a", 1),
                derive_seed(0, "a", 2),
                derive_seed(0, "b", 1),
                derive_seed(0, "a"),
            }
        )
        == 5
    )
    assert 0 <= derive_seed(3, "x") < 2**56
    assert derive_seed(0, "a", 1) == 0x699F66CEB18A8C  # a change would make every published run another run


def draw() -> tuple[float, float, list[float]]:
    return random.random(), float(np.random.rand()), torch.rand(2).tolist()


def test_seed_phase_repeats_every_stream() -> None:
    seed_phase(0, 0, 3, "synthesis")
    first = draw()
    seed_phase(0, 0, 3, "distillation")
    other = draw()
    seed_phase(0, 0, 3, "synthesis")
    assert draw() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_one_stream_is_the_same_on_all_ranks() -> None:
    found = []
    for rank in (0, 1):
        seed_phase(0, rank, 3, "synthesis")
        found.append((draw(), [SHARED.random() for _ in range(3)]))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
    seed_phase(0, 0, 4, "synthesis")
    assert [SHARED.random() for _ in range(3)] != found[0][1]


def test_balanced_labels() -> None:
    torch.manual_seed(0)
    labels = balanced_labels(23, 10)
    assert labels[:20].tolist() == [*range(10), *range(10)]
    assert labels.shape == (23,)
    assert labels.max() < 10
    assert balanced_labels(4, 10).shape == (4,)
