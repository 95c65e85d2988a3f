"""Distillation in Python: a teacher and a student, as modules or by name, and a run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dfkd_fast.api.networks import load_student
from dfkd_fast.api.settings import flags_of, method_name, spec_of
from dfkd_fast.config.run_folders import check_same, free_folder, newest_run
from dfkd_fast.config.sources import default_config, load_config, load_run, resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.methods.base import Method
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.training.interrupt import Interrupted
from dfkd_fast.training.records.run_record import read_run_record
from dfkd_fast.training.train import train


@dataclass(frozen=True)
class Result:
    """What a run has come to."""

    run_dir: Path
    """the run folder, with everything that the command line's runs have"""
    record: dict[str, Any]
    """run.json: accuracy, seconds and FLOPs by phase, versions"""

    @property
    def top1(self) -> float | None:
        """The student's share of right answers on `test`, in [0, 1], after the last epoch; None without `test`."""
        return self.record["top1_last"]

    @functools.cached_property
    def student(self) -> NormalizedNetwork:
        """The student, as `load_student` gives it: float images (B, C, H, W) in [0, 1] -> logits (B, K)."""
        return load_student(self.run_dir)


def distill(
    teacher: nn.Module | str,
    student: nn.Module | str,
    *,
    method: str | type[Method] = "nayer",
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    test: str | Path | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    **recipe: Any,
) -> Result:
    """Distil a student from a teacher without its data: `dfkd-fast train` as a function.

    teacher, student: modules, which map normalised images (B, C, H, W) to logits (B, K), or names as `--teacher` takes
        them. A module stays as it is, a copy is used: the teacher as it is, the student from the weights that it has.
    method: a method's name, or a class below `Method` (see `register_method`).
    mean, std: one value a channel, for pixels in [0, 1]; image_size: pixels, one number or height and width. What
        a network's file or library says of them need not be said.
    test: real images that are evaluated on and never learned from: "digits", or a path as `--data` takes it.
    run_dir: the run folder; without it a new one below `runs`. With `resume` the run in it goes on; that needs the same
        arguments: modules of the same class with the same tensors.
    recipe: every other setting of `dfkd-fast train METHOD --help`, sections as dicts: `epochs=100, bn_weight=5.0,
        seed=1, teacher_weights="net.pth", eval={"every": 10}`.

    Raises UserError, a ValueError of one line, for every mistake before anything is written, and KeyboardInterrupt,
    which says how to go on, when the run is stopped.
    """
    name = method_name(method)
    given: dict[str, Any] = {"teacher": spec_of(teacher), "student": spec_of(student)}
    given |= {"mean": mean, "std": std, "image_size": image_size, "num_classes": num_classes}
    given |= {"data": test, "run_dir": run_dir} | recipe
    if isinstance(teacher, nn.Module):
        given.setdefault("train_teacher", False)  # as a preset may have it
    config = resolve(load_config(default_config(name), preset=preset, flags=[*flags_of(given)]))
    config.check()
    config = _in_its_folder(config, resume=resume)
    try:
        folder = train(config, resume=resume)
    except Interrupted as stop:
        go_on = f"to go on: the same call with run_dir={str(stop.run_dir)!r}, resume=True" if stop.run_dir else "no run"
        raise KeyboardInterrupt(f"stopped by {stop}; {go_on}") from None
    return Result(folder, read_run_record(folder / "run.json"))


def _in_its_folder(config: TrainConfig[Any], *, resume: bool) -> TrainConfig[Any]:
    """The config with the folder of its run: a free one, or the one that is gone on with, if it is the same run's."""
    if not resume:
        return config if config.run_dir is not None else replace(config, run_dir=free_folder(config.run_folder))
    folder = config.run_dir or newest_run(config.run_folder)
    check_same(load_run(folder), config, folder)
    return replace(config, run_dir=folder)
