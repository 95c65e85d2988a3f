"""The engine's treatment of an inner optimisation whose losses are not all finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Inner, LossTerms
from dfkd_fast.methods.recipe import MethodConfig
from dfkd_fast.parallel.global_batch import LOCAL_BATCH
from dfkd_fast.training.inner import InnerLoop


def engine(losses: list[float]) -> InnerLoop:
    """Steps whose losses are given, one after the other, and whose images count them."""
    weight, given, steps = torch.ones(1, requires_grad=True), iter(losses), iter(range(len(losses)))

    def step() -> tuple[Tensor, LossTerms]:
        return torch.full((2, 3, 4, 4), float(next(steps))), {"kd": weight.sum() * 0 + next(given)}

    config = MethodConfig(select_iterate="last")
    return InnerLoop(
        Inner(config, step, lambda: [{"params": [weight], "lr": 0.0}]), make_runtime(device="cpu"), LOCAL_BATCH
    )


@pytest.mark.parametrize("losses", [[1.0, float("nan")], [float("inf"), 1.0]])
def test_one_sound_turn_of_many_is_enough(losses: list[float]) -> None:
    """Networks that take turns run one step at a time: a round is lost where none of its steps was sound."""
    loop = engine([*losses, float("nan")])
    for _ in losses:
        made = loop.run(1, 1.0, {})
    assert float(made.mean()) == losses.index(1.0)
    assert loop.taken(0) == 2
    loop.run(1, 1.0, {})
    with pytest.raises(UserError, match="synthesis of epoch 1 diverged"):
        loop.taken(0)


def test_a_run_of_many_steps_stands_for_itself() -> None:
    """The images of an earlier run are none of the next one's."""
    loop = engine([1.0, 1.0, float("nan"), float("nan")])
    loop.run(2, 1.0, {})
    loop.run(2, 1.0, {})
    with pytest.raises(UserError, match="diverged"):
        loop.taken(0)
