"""The race at equal budgets: its schedules, its runs at tiny size on made pictures, and a user's own checkout."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_fast.benchmark.step_profiler import calibrate_batchnorm
from dfkd_fast.cli.main import main as cli
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network

BENCH = Path(__file__).parents[2] / "bench"
PARTS = ("recipes", "costs", "budget", "checkouts", "contestants", "standings")

SCRIPT = """
import sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert given["--method"] == "fast_meta" and given["--teacher"] == "cnn" and given["--ep_steps"] == given["--kd_steps"]
for epoch in range(int(given["--epochs"])):
    print(f"[2026-01-01 00:00:00] pair INFO: [Eval] Epoch={epoch} Acc@1={20 + epoch:.4f} Acc@5=50.0 Loss=1.0 Lr=0.1")
print("Best: 99.0")
"""
"""what a checkout of a released code has in place of hours of training"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    for folder in (BENCH, BENCH / "race"):
        monkeypatch.syspath_prepend(folder)
    parts = {name: importlib.import_module(name) for name in PARTS}
    spec = importlib.util.spec_from_file_location("race_run", BENCH / "race" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    yield SimpleNamespace(**parts, run=run, whole_run=importlib.import_module("released_style.whole_run"))
    for name in PARTS:
        sys.modules.pop(name, None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Made pictures, a teacher that has seen nothing, and a page."""
    generator = np.random.default_rng(0)
    for name in "abcdefghij":
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    calibrate_batchnorm(model, info)
    save_network(tmp_path / "cnn.safetensors", model.eval(), info)
    markers = (f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("race-steps", "race-budget"))
    (tmp_path / "page.md").write_text("".join(markers))
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "datafree_kd.py").write_text(SCRIPT)
    return tmp_path


def arguments(place: Path, *more: str) -> list[str]:
    folders = ["--data", str(place / "data"), "--teachers", str(place), "--weights", "cnn.safetensors"]
    files = ["--cache", str(place / "runs"), "--results", str(place / "race.jsonl"), "--page", str(place / "page.md")]
    return [*folders, *files, "--pair", "cnn", "cnn_s", "--precision", "fp32", "--minutes", "0.02", *more]


class InProcess:
    """The commands of a race, in this process: starting Python takes longer than these runs."""

    def __init__(self, bench: SimpleNamespace) -> None:
        self.bench, self.started = bench, []

    def measure(self, side: str, recipe: Path, log: Path) -> Any:
        self.started.append(f"time {side}")
        known = {"ours": (0.01, 0.01, 0.015, 0.02, 0.2), "released-style": (0.02, 0.02, 0.03, 0.04, 0.2)}
        return self.bench.costs.Costs(*known[side])

    def __call__(self, words: Sequence[str], log: Path, where: Path | None) -> float:
        first = Path(words[0]).name
        self.started.append(words[2] if first == "-m" else first)
        if where is not None:
            return self.bench.contestants.launch_process(words, log, where)
        start, status = time.process_time(), 0
        with log.open("w") as out, contextlib.redirect_stdout(out):
            if first == "-m":
                status = cli([*words[2:]])
            else:
                self.bench.whole_run.main(words[1:])
        if status:
            raise SystemExit(f"failed with {status}, see {log}")
        return time.process_time() - start


SMALL = (
    *("--synthesis-batch-size", "8", "--batch-size", "8", "--generator-width", "8"),
    *("--epochs", "10", "--warmup-epochs", "2", "--student-steps", "8"),
)


@pytest.fixture
def small(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Fast's recipe with few steps on few images."""
    recipe = bench.recipes.RECIPES["fast"]
    monkeypatch.setitem(bench.recipes.RECIPES, "fast", bench.recipes.RaceRecipe(recipe.preset, SMALL))
    return bench


def test_a_tiny_race_is_run_once_and_its_tables_written(small, place: Path, capsys) -> None:
    """A method's three runs, and a fake checkout's; then nothing is left to do."""
    doing = InProcess(small)
    given = arguments(place, "--methods", "fast", "--released", f"fast={place / 'checkout'}")
    assert small.run.main(given, measure=doing.measure, launch=doing) == 0
    out = capsys.readouterr().out
    assert "4 runs are missing: 0.00 core-hours" in out
    sides = ["whole_run.py", "eval", "train", "eval", "train", "eval"]
    assert doing.started == ["time ours", "time released-style", *sides, "datafree_kd.py"]
    lines = [json.loads(text) for text in (place / "race.jsonl").read_text().splitlines()]
    assert [line["role"] for line in lines] == ["baseline", "ours-steps", "ours-budget", "released"]
    assert all(0 <= line["top1"] <= 1 and line["processor_seconds"] > 0 and line["git_sha"] for line in lines)
    assert str(place) not in (place / "race.jsonl").read_text(), "no path of this machine"
    assert "--teacher-weights TEACHERS/cnn.safetensors" in lines[1]["command"]
    theirs, same, budget, released = lines
    for key in ("epochs", "generator_steps", "student_steps", "scale"):
        assert theirs[key] == same[key] == released[key]
    assert budget["scale"] > theirs["scale"]
    assert released["top1"] == pytest.approx((20 + released["epochs"] - 1) / 100)
    doing.started.clear()
    assert small.run.main(given, measure=doing.measure, launch=doing) == 0
    assert doing.started == [], "plan and runs were kept"
    assert small.run.main([*given, "--docs"], measure=doing.measure, launch=doing) == 0
    page = (place / "page.md").read_text()
    assert page.count("not measured") == 2 * 4, "the methods that did not run"
    (row,) = (text for text in page.splitlines() if text.startswith("| Fast-5 | released style |"))
    ratio = theirs["processor_seconds"] / same["processor_seconds"]
    assert f"| {theirs['epochs']}, {theirs['generator_steps']} + {theirs['student_steps']} |" in row
    assert f"| {ratio:.2f} | {100 * same['top1']:.2f} % | {100 * theirs['top1']:.2f} % |" in row


def test_a_dry_run_says_what_it_takes_and_runs_nothing(small, place: Path, capsys) -> None:
    doing = InProcess(small)
    given = arguments(place, "--methods", "fast", "--seeds", "0", "1", "--dry-run")
    assert small.run.main(given, measure=doing.measure, launch=doing) == 0
    assert doing.started == ["time ours", "time released-style"]
    *_, plan, total = capsys.readouterr().out.splitlines()
    assert plan.startswith("Fast-5: schedule x 0.")
    known = json.loads(next((place / "runs").glob("plan-fast-*.json")).read_text())["plan"]
    hours = 2 * (known["baseline"] + known["ours_steps"] + known["ours_budget"]) / 3600
    assert total == f"6 runs are missing: {hours:.2f} core-hours, evaluation apart"
    assert known["baseline"] <= 1.2
    assert known["ours_budget"] <= 1.2
    assert not (place / "race.jsonl").exists()


def test_a_budget_below_the_start_is_told(small, place: Path, capsys) -> None:
    doing = InProcess(small)
    given = arguments(place, "--methods", "fast", "--minutes", "0.001", "--dry-run")
    assert small.run.main(given, measure=doing.measure, launch=doing) == 0
    assert "Fast-5: even the smallest schedule does not end within 0 s" in capsys.readouterr().out


def test_a_run_that_fails_is_told_and_the_others_go_on(small, place: Path, capsys) -> None:
    doing = InProcess(small)
    (place / "checkout" / "datafree_kd.py").write_text("raise SystemExit('no card')")

    def launch(words: Sequence[str], log: Path, where: Path | None) -> float:
        if where is None:
            raise SystemExit("not now")
        return doing(words, log, where)

    given = arguments(place, "--methods", "fast", "--seeds", "0", "--released", str(place / "checkout"))
    assert small.run.main(given, measure=doing.measure, launch=launch) == 1
    out = capsys.readouterr().out
    assert out.count(": not now") == 3
    assert "the released code, the same steps, seed 0: failed with 1, see " in out


@pytest.mark.parametrize("method", ["nayer", "ssdkd", "fast", "muse-s", "cmi"])
def test_recipes_scale_their_counts_and_nothing_else(method: str, bench, tmp_path: Path) -> None:
    """Both sides can follow the recipe; a larger schedule has no fewer steps and costs no less."""
    from released_style.schedule import check_followed

    networks = bench.recipes.Networks("resnet56", "resnet20", Path("t.th"))
    costs = bench.costs.Costs(2.0, 3.0, 0.1, 1.0, 5.0)
    whole = bench.recipes.config_of(method, bench.recipes.flags_of(method, networks, scale=1, seed=0))
    check_followed(whole)
    assert whole.text == "orthogonal"
    assert whole.mean == (0.485, 0.456, 0.406)
    before, counts = 0.0, bench.recipes.RECIPES[method].counts
    for scale in (1e-4, 0.02, 0.1, 0.5, 1.0):
        config = replace(whole.method, **bench.recipes.scaled(method, whole.method, scale))
        changed = {key for key, value in vars(config).items() if value != getattr(whole.method, key)}
        assert changed <= set(counts)
        assert config.warmup_epochs < config.epochs
        seconds = costs.of(config, image_size=32)
        assert seconds > before
        before = seconds
    assert {"epochs", "warmup_epochs", "student_steps"} <= set(counts)


def test_costs_are_added_up_as_a_run_takes_its_steps(bench) -> None:
    config = bench.recipes.config_of("fast", ["--epochs", "5", "--warmup-epochs", "2", "--student-steps", "7"]).method
    seconds = bench.costs.Costs(2.0, 3.0, 0.1, 1.0, 5.0).of(config, image_size=32)
    assert seconds == pytest.approx(5 + 2 * (5 * 2 + 0.1) + 3 * (5 * 3 + 0.1 + 7))


def test_both_sides_steps_can_be_timed(small, place: Path) -> None:
    networks = small.recipes.Networks("cnn", "cnn_s", place / "cnn.safetensors")
    config = small.recipes.config_of("fast", small.recipes.flags_of("fast", networks, scale=0.1, seed=0))
    for measure in small.costs.SIDES.values():
        found = measure(config)
        assert min(vars(found).values()) > 0


def test_a_checkouts_command_line_has_the_recipe(bench, tmp_path: Path) -> None:
    """As the releases' own scripts write it."""
    values = {
        "fast": {"--method": "fast_meta", "--g_steps": "5", "--lr_z": "0.01", "--is_maml": "1", "--reset_l0": "1"},
        "nayer": {"--method": "nayer", "--g_loops": "2", "--gwp_loops": "10", "--lr_g": "0.004", "--eta_min": "0.0002"},
        "cmi": {"--method": "cmi", "--cr": "0.8", "--cr_T": "0.1", "--adv": "0.5", "--bn": "1.0"},
    }
    for method, wanted in values.items():
        config = bench.recipes.config_of(method, bench.recipes.RECIPES[method].flags).method
        words = bench.checkouts.command_line(method, config, teacher="a", student="b", seed=3, folder=tmp_path)
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert wanted.items() <= given.items()
        assert given["--kd_steps"] == given["--ep_steps"] == str(config.student_steps)
        assert (given["--seed"], given["--T"], given["--warmup"]) == ("3", "20.0", str(config.warmup_epochs))


def test_the_accuracy_of_a_log_is_that_of_the_last_epoch(bench) -> None:
    log = "[Eval] Epoch=0 Acc@1=90.1000 Acc@5=1\n[Eval] Epoch=1 Acc@1=71.2500 Acc@5=1\nBest: 90.1"
    assert bench.checkouts.accuracy(log, epochs=2) == 0.7125
    with pytest.raises(SystemExit, match="the last evaluation is of epoch 1, not of 2"):
        bench.checkouts.accuracy(log, epochs=3)
    with pytest.raises(SystemExit, match="no line"):
        bench.checkouts.accuracy("", epochs=2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--released", "DIR"), "--released DIR: choose nayer=DIR, fast=DIR, cmi=DIR"),
        (("--methods", "ssdkd", "--released", "x"), "--released x: choose --methods with one of nayer, fast, cmi"),
        (("--methods", "fast", "--released", "/none"), "no datafree_kd.py in /none"),
        (("--weights", "other.th"), "--weights other.th: no such file in --teachers"),
        (("--data", "/none"), "--data /none: no such file or folder"),
        (("--minutes", "0"), "--minutes 0.0 --jobs 1: choose more than 0"),
        (("--methods", "dafl"), "invalid choice: 'dafl'"),
    ],
)
def test_mistakes_are_one_line(bench, place: Path, flags: tuple[str, ...], told: str, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.run.main(arguments(place, *flags))
    assert refused.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
