"""The variants of a method's steps are the same on all ranks, whose captures and collectives must meet."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from test_contract import Assembled, every_method, teacher_file, tiny  # noqa: F401 - a fixture
from torch.utils._pytree import tree_map

from dfkd_fast.methods.base import Inner, Method
from dfkd_fast.methods.inner import LrScale, Variant, inners
from dfkd_fast.rng import seed_phase


class Noting:
    """An engine that notes which optimisation takes which steps, and looks at one of them."""

    def __init__(self, inner: Inner, number: int, found: list[Hashable]) -> None:
        self.inner, self.number, self.found = inner, number, found
        inner.engine = self

    def run(self, steps: int, _lr_scale: LrScale, variant: Variant) -> Any:
        self.found += [(self.number, *sorted(variant.items()))] * steps
        return tree_map(torch.detach, self.inner.step(**variant)[0])

    def inference(self) -> AbstractContextManager[Any]:
        return torch.no_grad()


def variants(method: Method, rank: int) -> list[Hashable]:
    """Of all steps of three epochs, in their order."""
    found: list[Hashable] = []
    for number, inner in enumerate(inners(method)):
        inner.optimizers()  # a method may only now say what asks for gradients
        Noting(inner, number, found)
    for epoch in range(3):
        seed_phase(0, rank, epoch, "synthesis")
        for _ in method.synthesize(epoch):
            pass
        seed_phase(0, rank, epoch, "distillation")
        found += [method.student_variant() for _ in range(20)]
    return found


@every_method
def test_two_ranks_take_the_same_steps(name: str, teacher_file: Path, tmp_path: Path) -> None:  # noqa: F811
    run = Assembled(tiny(name, teacher_file, tmp_path / "run"), tmp_path / "pool")
    run.pool.close()
    assert variants(run.method, rank=0) == variants(run.method, rank=1)
