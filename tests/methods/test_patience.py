"""`--method.patience`: where a round ends, on losses that are given; captured, over ranks, and in what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tape import Tape
from torch import Tensor

from dfkd_fast.benchmark.projection import project
from dfkd_fast.benchmark.step_profiler import Timings
from dfkd_fast.benchmark.step_timer import TimedLoop, TimingWindow
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.flops import StepFlops
from dfkd_fast.costs.work import SynthesisKind, Work
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Inner, LossTerms
from dfkd_fast.methods.recipe import MethodConfig
from dfkd_fast.parallel import group as process_group
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch, MicroBatches
from dfkd_fast.training.capture import CapturedSteps
from dfkd_fast.training.inner import InnerLoop
from dfkd_fast.training.loop import Progress
from dfkd_fast.training.records import run_record

NAN = float("nan")
BETTER = [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0]
WORSE = [9.0] * 40


class Given:
    """An engine whose steps have the losses that are given, and whose images count them; all on tensors."""

    def __init__(
        self,
        losses: Sequence[float],
        patience: int,
        *,
        runtime: Runtime | None = None,
        batch: GlobalBatch = LOCAL_BATCH,
    ) -> None:
        self.weight, self.losses = torch.ones(1, requires_grad=True), torch.tensor(losses)
        self.at = torch.zeros((), dtype=torch.int64)
        inner = Inner(
            MethodConfig(patience=patience), self.step, lambda: [{"params": [self.weight], "lr": 0.1}], after=self.after
        )
        self.loop = InnerLoop(inner, runtime or make_runtime(device="cpu"), batch)

    def step(self) -> tuple[Tensor, LossTerms]:
        images = torch.ones(2, 3, 4, 4) * self.at
        return images, {"kd": self.weight.sum() * 0 + self.losses.index_select(0, self.at.view(1)).sum()}

    def after(self) -> None:
        self.at.add_(1)

    def round(self, steps: int) -> tuple[int, int]:
        """The steps that were taken, and which of all made the images."""
        made = self.loop.run(steps, 1.0, {})
        return self.loop.taken(0), int(made.mean())


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        (BETTER + WORSE, 3, (15, 9)),  # the tenth step is the best; three more by the thirteenth, asked after the 15th
        (BETTER + WORSE, 1, (11, 9)),
        (BETTER + WORSE, 12, (30, 9)),  # 22 steps have been enough; blocks of ten
        ([*BETTER, 9, 9, -1.0, *WORSE], 3, (18, 12)),  # one better image, and it all begins anew
        (BETTER + WORSE, 45, (50, 9)),
        ([5.0, NAN, NAN, NAN, NAN, *BETTER], 4, (8, 0)),  # what is not finite is not better
        (BETTER + WORSE, 0, (50, 9)),
    ],
)
def test_where_a_round_ends(losses: list[float], patience: int, expected: tuple[int, int]) -> None:
    assert Given(losses + WORSE, patience).round(50) == expected


def test_each_round_has_its_own_patience() -> None:
    given = Given([1.0, 2, 2, *BETTER, *WORSE], 2)
    assert given.round(20) == (4, 0)
    assert given.round(20) == (12, 12)
    assert given.loop.unchecked_steps == 0


def test_without_it_a_step_is_what_it_was() -> None:
    """The same bits, of the steps that are taken with it, too."""
    patient, plain = Given(BETTER + WORSE, 3), Given(BETTER + WORSE, 0)
    assert plain.loop.patience is None
    taken, best = patient.round(50)
    assert plain.round(taken) == (taken, best)
    assert torch.equal(patient.weight, plain.weight)


def test_captured_steps_end_where_others_do() -> None:
    given, recorder = Given([*BETTER, 9, 9, -1.0, *WORSE], 3), Tape()
    given.loop.run_step = CapturedSteps(given.loop.step, recorder)
    assert given.round(50) == (18, 12)
    assert recorder.recorded == 1


def test_micro_batches_count_a_step_once() -> None:
    """Two parts with a step's number of images each, and the counter moves with the step."""
    assert Given(BETTER + WORSE, 3, batch=MicroBatches(2)).round(50) == (15, 9)


@pytest.mark.parametrize(("others_end", "steps"), [(15, 15), (21, 21), (1000, 50)])
def test_the_last_of_several_processes_decides(others_end: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has a better image up to one step: both take the same number of steps."""
    runtime = replace(make_runtime(device="cpu"), world_size=2)
    given = Given(BETTER + WORSE, 3, runtime=runtime)
    asked: list[int] = []

    def all_reduce(value: Tensor) -> None:
        asked.append(int(given.at))
        value += int(given.at) < others_end

    monkeypatch.setattr(process_group, "all_reduce", all_reduce)
    assert given.round(50)[0] == steps
    assert asked == [*range(3, steps + 1, 3)]  # no message in between


@pytest.mark.parametrize(
    ("method", "flags", "reason"),
    [
        ("nayer", ["--patience", "40"], r"--method\.patience 40: ends no round of 40 steps; choose fewer"),
        (
            "nayer",
            ["--patience", "5", "--select-iterate", "last"],
            r"--method\.patience 5: no image is better .* choose 0$",
        ),
        ("hidfd", ["--patience", "5"], r"--method\.patience 5: no image is better"),
        ("nayer", ["--patience", "-1"], r"--method\.patience -1: choose 0 or more"),
    ],
)
def test_patience_that_means_nothing_is_refused(method: str, flags: list[str], reason: str) -> None:
    networks = ["--teacher", "wrn40_2", "--student", "wrn16_1"]
    with pytest.raises(UserError, match=reason):
        load_config(default_config(method), flags=[*flags, *networks]).check()
    load_config(default_config("nayer"), flags=["--patience", "39", *networks]).check()


def test_what_was_not_done_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the steps: half of the synthesis' FLOPs."""
    monkeypatch.setattr(run_record, "matmul_rate", lambda _runtime: 1.0)
    kind = SynthesisKind(0, (), True)
    work, counted = Work(student_steps=3), StepFlops(synthesis={kind: 8.0}, student=2.0, round_steps={})
    work.synthesis_steps[kind], flops = 10, replace(counted, done=counted)
    progress, runtime = Progress(), make_runtime(device="cpu")
    progress.seconds["synthesis"], progress.counts["generator_steps"] = 2.0, 5
    found = run_record.run_costs(work, flops, progress, runtime, patience=3)
    assert (found["synthesis_flops"], found["synthesis_mfu"], found["synthesis_hfu"]) == (40.0, 20.0, 20.0)
    assert found["distillation_flops"] == 6.0
    assert run_record.run_costs(work, flops, progress, runtime)["synthesis_flops"] == 80.0


def test_a_dry_run_times_all_steps_and_says_that_they_are_a_bound() -> None:
    given = Given(WORSE, 1)
    loop = TimedLoop(0, given.loop.inner, given.loop.runtime, LOCAL_BATCH)
    loop.window = TimingWindow(warmup=2, steps=1, samples=4)
    loop.run(3, 1.0, {})
    assert int(given.at) == loop.window.total
    work, flops, timings = Work(), StepFlops(synthesis={}, student=1.0, round_steps={}), Timings()
    projection = project(work, timings, flops, 1.0, given.loop.runtime, patience=7)
    assert any(line.strip().startswith("at most: --patience 7") for line in projection.lines("hours"))
    assert projection.record()["is_upper_bound"]
    unbounded = project(work, timings, flops, 1.0, given.loop.runtime)
    assert not any("patience" in line for line in unbounded.lines("hours"))
    assert "is_upper_bound" not in unbounded.record()
