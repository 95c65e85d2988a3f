"""Golden trajectories: 20 steps of a method in float64, kept as numbers, so that no change of them goes unseen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rounds import Rounds
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method
from dfkd_fast.rng import seed_phase

FOLDER = Path(__file__).parent.parent / "golden"


def trajectory(method: Method, runtime: Runtime, *, epochs: int, terms: Sequence[str]) -> dict[str, Tensor]:
    """One round in each epoch: the terms of every step (0 where a step has none), and each kept image's mean."""
    rounds = Rounds(method, runtime)
    losses: list[Tensor] = []
    images = []

    def on_step(found: dict[str, Tensor], _images: int) -> None:
        assert found.keys() <= set(terms)
        losses.append(torch.stack([found.get(name, torch.zeros(()).double()) for name in terms]))

    for epoch in range(epochs):
        seed_phase(0, 0, epoch, "synthesis")
        images.append(rounds.round(epoch, 0, on_step).images.mean((1, 2, 3)))
    return {"losses": torch.stack(losses), "images": torch.stack(images)}


def check_golden(name: str, found: dict[str, Tensor]) -> None:
    """Float64, one thread, 1e-6 relative: any change of the numbers must be meant, and replace the file with a reason.

    Delete the file and run the test to write it anew.
    """
    file = FOLDER / f"{name}.safetensors"
    if not file.exists():
        save_file(found, file)
        pytest.fail(f"{file.name} was missing and has been written; look at it and run again")
    expected = load_file(file)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9)
