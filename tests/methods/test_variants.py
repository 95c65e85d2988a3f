"""The variants of a method's steps are the same on all ranks, whose captures and collectives must meet."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from test_contract import Assembled, every_method, teacher_file, tiny  # noqa: F401 - a fixture

from dfkd_fast.methods.base import Method
from dfkd_fast.rng import seed_phase


def variants(method: Method, rank: int) -> list[Hashable]:
    """Of all steps of three epochs, in their order."""
    found: list[Hashable] = []
    for epoch in range(3):
        seed_phase(0, rank, epoch, "synthesis")
        for source in method.sources():
            for index in range(source.rounds(epoch)):
                source.begin_round(epoch, index)
                for stage, steps in enumerate(source.stages()):
                    source.begin_stage(stage)
                    for step in range(steps):
                        source.begin_step(step)
                        found.append(source.step_variant())
        seed_phase(0, rank, epoch, "distillation")
        found += [method.student_variant() for _ in range(20)]
    return found


@every_method
def test_two_ranks_take_the_same_steps(name: str, teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    run = Assembled(tiny(name, teacher_file, tmp_path / "run"), tmp_path / "pool")
    run.pool.close()
    assert variants(run.method, rank=0) == variants(run.method, rank=1)
