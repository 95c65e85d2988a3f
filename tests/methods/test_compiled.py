"""Every method's steps go through torch.compile as one graph each: no Python left inside that would cut it in two."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from test_contract import Assembled, every_method, teacher_file, tiny  # noqa: F401 - a fixture

from dfkd_fast.device.compilation import trace_gradients
from dfkd_fast.rng import seed_phase

LAST = 2  # the epoch in which every term takes part


def losses(run: Assembled) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    seed_phase(0, 0, LAST, "synthesis")
    run.round(LAST, on_step=lambda terms, _: found.extend(terms.values()))
    seed_phase(0, 0, LAST, "distillation")
    run.trainer.epoch(LAST, run.method.config.steps_per_epoch, lambda terms, _: found.extend(terms.values()))
    run.pool.close()
    return found


@every_method
def test_one_graph(name: str, teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """Traced, and run by torch's own operators, which makes tracing the only difference: the same losses."""
    config = tiny(name, teacher_file, tmp_path / "run")
    expected = losses(Assembled(config, tmp_path / "plain"))
    run = Assembled(config, tmp_path / "compiled")
    trace_gradients()
    whole: Any = functools.partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    for engine in run.rounds.engines:
        engine._forward = whole(engine.inner.step)
    run.trainer._losses = whole(run.trainer._terms)
    found = losses(run)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
