"""`--dry-run`: what it prints, what it leaves alone, and that it predicts a run."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

from dfkd_fast.benchmark.dry_run import dry_run
from dfkd_fast.benchmark.idle import busy_line, idle_clock
from dfkd_fast.benchmark.step_profiler import Timings, profile_steps
from dfkd_fast.benchmark.step_timer import Quantiles, StepTimer, TimingWindow
from dfkd_fast.catalog import METHODS
from dfkd_fast.cli.main import main
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.work import RoundKind, SynthesisKind, Work
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.files.limits import available_cores
from dfkd_fast.models.factory import ModelInfo

INFO = ModelInfo(name="cnn", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
TINY = [
    *("--threads", "1", "--precision", "fp32", "--teacher", "cnn", "--student", "cnn_s", "--epochs", "3"),
    *("--warmup-epochs", "1", "--synthesis-batch-size", "20", "--synthesis-steps", "3", "--batch-size", "16"),
    *("--student-steps", "4"),
]


def test_prints_the_cost_and_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rounds = ("--warmup-rounds", "2", "--rounds", "1", "--generator-width", "16")
    assert main(["train", "nayer", "--preset", "digits", *TINY, *rounds, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for part in (
        "dry run: nayer, cnn -> cnn_s, 32 px, 10 classes",
        "synthesis",
        "distillation",
        "80 images in 4 rounds",
    ):
        assert part in out
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(capsys) -> None:
    assert main(["train", "nayer", "--teacher", "wrn16_1", "--student", "wrn16_1", "--dry-run"]) == 2
    assert "num_classes, image_size" in capsys.readouterr().err


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_rehearsed(name: str) -> None:
    config = load_config(default_config(name), preset="digits", flags=TINY)
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    method, timings = profile_steps(config, INFO, runtime, TimingWindow(warmup=1, samples=2))
    epochs = [epoch for plan in method.pools() for epoch in range(method.config.epochs) if plan.rounds(epoch)]
    assert {kind.warmup for kind in timings.synthesis} == {epoch < method.config.warmup_epochs for epoch in epochs}
    assert all(0 < spread.least <= spread.median <= spread.most for spread in timings.synthesis.values())
    assert 0 < timings.student.least <= timings.student.most
    assert timings.peak_memory_bytes > 1e6


def test_seconds_add_up() -> None:
    early, late = (SynthesisKind(0, (), is_warmup) for is_warmup in (True, False))
    first, later = (RoundKind(ImageSize.of(32), is_warmup) for is_warmup in (True, False))
    timings = Timings(
        synthesis={early: Quantiles(1, 0.5, 2), late: Quantiles(2, 1, 4)},
        round={first: 10, later: 20},
        student=Quantiles(3, 2, 4),
    )
    work = Work(student_steps=5)
    work.synthesis_steps.update({early: 100, late: 1000})
    work.rounds.update({first: 1, later: 2})
    assert timings.synthesis_seconds(work) == Quantiles(2150, 1100, 4250)
    assert timings.student_seconds(work) == Quantiles(15, 10, 20)


def test_predicts_a_run(tmp_path: Path) -> None:
    """Loose, since steps are short here and machines that test are busy: a factor of 1.5 of processor time, the third
    time at the latest. `make bench SUITE=dry-run` asks for 10 %.
    """
    flags = [*TINY, "--warmup-rounds", "2", "--rounds", "2", "--synthesis-steps", "10", "--student-steps", "60"]
    config = load_config(default_config("nayer"), preset="digits", flags=flags)
    predicted = [dry_run(config, show=lambda line: None) for _ in range(3)]
    projected = sorted(predicted, key=lambda each: each.hours.median)[1]
    recipe = ("--teacher-recipe.epochs", "1", "--teacher-recipe.batch-size", "512")
    assert main(["train", "nayer", "--preset", "digits", *flags, *recipe, "--run-dir", str(tmp_path / "run")]) == 0
    spent = json.loads((tmp_path / "run" / "run.json").read_text())
    hours = (spent["synthesis_processor_seconds"] + spent["distillation_processor_seconds"]) / 3600
    assert 1 / 1.5 < projected.hours.median / hours < 1.5
    assert (spent["gpu_hours"] > 0) == torch.cuda.is_available()
    assert projected.images == spent["images_synthesized"]
    assert projected.phases[0].steps == spent["generator_steps"]
    assert projected.phases[1].steps == spent["student_steps"]
    for phase in projected.phases:
        assert spent[f"{phase.name}_flops"] == phase.flops
        measured = spent[f"{phase.name}_flops"] / spent[f"{phase.name}_seconds"] / spent["matmul_flops_per_second"]
        assert spent[f"{phase.name}_mfu"] == pytest.approx(measured)


def test_the_check_compares_what_both_say(tmp_path: Path, monkeypatch) -> None:
    """`make bench SUITE=dry-run` on next to nothing; whether it is met is another matter, so the seconds are set."""
    path = Path(__file__).parents[2] / "bench" / "dry_run_check.py"
    spec = importlib.util.spec_from_file_location("dry_run_check", path)
    check = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(check)  # type: ignore[union-attr]
    arguments = [
        "nayer",
        "--preset",
        "digits",
        *TINY,
        "--warmup-rounds",
        "1",
        "--rounds",
        "1",
        "--generator-width",
        "16",
    ]
    monkeypatch.chdir(tmp_path)
    projected = check.predict(arguments)
    assert projected["synthesis"]["steps"] == 9
    assert 0 < projected["timed_seconds"] < 2 * projected["timed_wall_seconds"]
    spent = {"evaluation_seconds": 1.0}
    for factor, slower, met in ((1.05, 1.0, True), (1.13, 1.0, False), (1.13, 1.5, True), (1.3, 1.5, False)):
        for phase in ("synthesis", "distillation"):
            seconds = projected[phase]["seconds"] * factor
            spent |= {f"{phase}_processor_seconds": seconds, f"{phase}_seconds": seconds * slower}
        line = check.compare(arguments, projected, spent)
        assert line["ratio"] == pytest.approx(1 / factor)
        assert line["slowdown"] == pytest.approx(slower)
        assert line["met"] is met


def test_a_busy_machine_is_told() -> None:
    """By how much longer the steps took by the wall, or by the load before them."""
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    assert busy_line(runtime, load=0.0, slowdown=1.02) is None
    line = busy_line(runtime, load=0.0, slowdown=1.84)
    assert "1.84 times their processor time" in str(line)
    line = busy_line(runtime, load=available_cores() + 1.0, slowdown=1.0)
    assert f"load {available_cores() + 1:.1f} on {available_cores()} cores" in str(line)


def test_processor_time_counts_what_is_computed(monkeypatch) -> None:
    """A step that sleeps as long as another computes: the wall sees both, the clock of a CPU's dry run one."""
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    timer = StepTimer(TimingWindow(warmup=0, samples=3, clock=idle_clock(runtime)), runtime)
    timer.start()
    for _ in range(3):
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        time.sleep(0.05)
        timer.on_step({}, 0)
    assert timer.counted_seconds == pytest.approx(0.06, rel=0.2)
    assert timer.wall_seconds > 0.2
