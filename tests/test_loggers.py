"""Meters against plain arithmetic, the metrics file through crash and resume, and what the console shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_fast.reporting import loggers
from dfkd_fast.reporting.console import count, duration
from dfkd_fast.reporting.loggers import Pace, RunLogger, read_metrics
from dfkd_fast.reporting.meters import Meter


class Clock:
    """Stands in for the time module; moves when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loggers, "time", clock)
    return clock


class NoRead(TorchDispatchMode):
    """Fails on the operator that copies a scalar to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func)
        return func(*args, **(kwargs or {}))


def test_meter_means() -> None:
    meter, kd = Meter(), torch.zeros(())
    for step in range(10):
        kd.fill_(step)  # one static buffer, overwritten by the next step
        terms = {"kd": kd, "adv": torch.tensor([-1.0 * step])} if step >= 5 else {"kd": kd}
        with NoRead():
            meter.update(terms, 4)
        if step == 3:
            assert meter.read() == {"kd": 1.5}
    assert meter.read() == {"kd": 6.5, "adv": -7.0}
    assert meter.read() == {}
    assert meter.means() == {"kd": 4.5, "adv": -7.0}
    assert meter.images == 40


def test_meter_neither_keeps_a_graph_nor_loses_half_precision() -> None:
    meter, weight = Meter(), torch.ones((), requires_grad=True)
    for _ in range(1000):
        meter.update({"ce": (weight * 1.0).to(torch.bfloat16)}, 1)
    assert not any(value.requires_grad for value in meter._sums.values())
    assert meter.means() == {"ce": 1.0}  # a bfloat16 sum would stop at 256


def make_logger(folder: Path, **options: Any) -> RunLogger:
    return RunLogger(folder, total_epochs=4, **{"console": "off", "log_every": 2, **options})


def run_phase(logger: RunLogger, name: str, epoch: int, losses: list[float], images: int = 8) -> None:
    with logger.phase(name, epoch, len(losses)) as meter:
        for loss in losses:
            meter.step({"kd": torch.tensor(loss)}, images)


def test_phase_records(tmp_path: Path, clock: Clock) -> None:
    logger = make_logger(tmp_path)
    with logger.phase("distillation", 2, 3) as meter:
        for loss in (1.0, 2.0, 6.0):
            clock.now += 0.5
            meter.step({"kd": torch.tensor(loss)}, 8)
        assert meter.means() == {"kd": 3.0}
    clock.now += 10.0  # the clock of a phase stops with it
    assert (meter.seconds, meter.images, meter.steps) == (1.5, 24, 3)
    expected = {
        "epoch": 2,
        "phase": "distillation",
        "steps": 3,
        "images": 24,
        "seconds": 1.5,
        "kd": 3.0,
        "elapsed": 1.5,
    }
    assert read_metrics(tmp_path / "metrics.jsonl") == [expected]


def test_broken_phase_leaves_no_record(tmp_path: Path) -> None:
    logger = make_logger(tmp_path)

    def stop() -> None:
        with logger.phase("synthesis", 0, 3) as meter:
            meter.step({"ce": torch.tensor(1.0)}, 8)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stop()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_nan_is_null(tmp_path: Path) -> None:
    logger = make_logger(tmp_path)
    logger.record(
        epoch=0, phase="evaluation", top1=float("nan"), per_class=[1.0, float("inf")], sub={"x": -float("inf")}
    )
    line = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (record["top1"], record["per_class"], record["sub"]) == (None, [1.0, None], {"x": None})


def test_only_the_main_rank_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make_logger(tmp_path, is_main=False, console="plain")
    run_phase(logger, "synthesis", 0, [1.0, 2.0, 3.0])
    logger.message("hello")
    logger.truncate(0, "synthesis")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def history(folder: Path, clock: Clock) -> RunLogger:
    """Two epochs of both phases and an evaluation each, then a line that a crash cut off."""
    logger = make_logger(folder)
    for epoch in range(2):
        for phase in ("synthesis", "distillation"):
            clock.now += 10
            run_phase(logger, phase, epoch, [1.0])
        logger.record(epoch=epoch, phase="evaluation", top1=0.5)
    with logger.file.open("a") as file:
        file.write('{"epoch": 2, "pha')
    return logger


@pytest.mark.parametrize(
    ("boundary", "kept", "elapsed"),
    [((0, "synthesis"), 1, 10), ((0, "distillation"), 3, 20), ((1, "synthesis"), 4, 30), ((1, "distillation"), 6, 40)],
)
def test_truncate_to_a_checkpoint(
    tmp_path: Path, clock: Clock, boundary: tuple[int, str], kept: int, elapsed: float
) -> None:
    before = read_metrics(history(tmp_path, clock).file)
    clock.now += 1000
    logger = make_logger(tmp_path)
    logger.truncate(*boundary)
    assert read_metrics(logger.file) == before[:kept]
    assert logger.pace.elapsed == elapsed
    clock.now += 5
    run_phase(logger, "synthesis", 2, [1.0])
    assert read_metrics(logger.file)[kept:][0]["elapsed"] == elapsed + 5
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_pace(clock: Clock) -> None:
    cpu, gpus = Pace(4, gpus=0), Pace(4, gpus=2)
    for pace in (cpu, gpus):
        pace.enter(0)
    clock.now += 60
    assert (cpu.left(), cpu.text(), gpus.text()) == (None, "1m00s", "0.03 GPU-h")
    for pace in (cpu, gpus):
        pace.enter(1)
    clock.now += 15
    assert cpu.left() == 3 * 60 - 15
    assert cpu.text() == "1m15s of ~4m00s | eta 2m45s"
    assert gpus.text() == "0.04 GPU-h of ~0.13 | eta 2m45s"
    clock.now += 600  # a slow epoch: what is left of it is not negative
    assert cpu.left() == 2 * 60
    cpu.enter(3)  # an epoch that was not seen whole says nothing about the rate
    assert cpu.left() == 60


def test_plain_lines(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    logger = make_logger(tmp_path, console="plain")
    run_phase(logger, "synthesis", 0, [1.0])
    logger.record(epoch=0, phase="evaluation", top1=0.713)
    clock.now += 90
    with logger.phase("distillation", 1, 4) as meter:
        for _ in range(4):
            clock.now += 0.25
            meter.step({"kd": torch.tensor(0.4117)}, 4600)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/4 synthesis | kd 1 | ")
    assert second == ("epoch 2/4 distillation | kd 0.412 | acc 71.3 (last) | 18.4k img/s | 1m31s of ~6m00s | eta 4m29s")


def test_rich_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    logger = make_logger(tmp_path, console="rich")
    run_phase(logger, "synthesis", 0, [1.0] * 5)
    logger.message("[bold] is no markup")
    logger.close()
    shown = capsys.readouterr().out
    assert "epoch 1/4 synthesis | kd 1 | " in shown
    assert "[bold] is no markup" in shown
    assert "\x1b[?25l" in shown  # the live bar hides the cursor ...
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # ... and gives it back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (750, "12m30s"), (4320, "1h12m"), (273600, "3d04h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.2, "0"), (870, "870"), (9999, "9999"), (18432, "18.4k"), (1.24e6, "1.2M")]
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text
