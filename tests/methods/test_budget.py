"""The images that a budget pays for, and their rounds over the epochs."""

from __future__ import annotations

import pytest

from dfkd_fast.methods.muse.budget import data_ratio_capacity
from dfkd_fast.methods.recipe import rounds_in_epoch


def test_the_papers_numbers() -> None:
    assert data_ratio_capacity(1_000_000, 0.1, full_size=224, image_size=112) == 400_000
    assert data_ratio_capacity(10_000, 0.01, full_size=224, image_size=96) == 544
    assert data_ratio_capacity(50_000, 1.0, full_size=32, image_size=28) == 65_306


@pytest.mark.parametrize(
    ("capacity", "batch_size", "epochs"), [(400_000, 200, 400), (544, 100, 100), (10, 3, 7), (9, 3, 1)]
)
def test_rounds_are_spread_evenly_and_just_fill_the_pool(capacity: int, batch_size: int, epochs: int) -> None:
    rounds = [
        rounds_in_epoch(epoch, epochs=epochs, capacity=capacity, batch_size=batch_size) for epoch in range(epochs)
    ]
    assert capacity <= sum(rounds) * batch_size < capacity + batch_size
    assert max(rounds) - min(rounds) <= 1
    assert rounds[0] > 0
