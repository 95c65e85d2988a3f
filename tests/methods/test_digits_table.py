"""The table of every method on digits: runs are made once, stopped ones go on, and the page says what is missing."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.train import TrainConfig, flatten
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network

ROOT = Path(__file__).parent.parent.parent
BENCH = ROOT / "bench" / "methods"
PARTS = ("cells", "runs", "table", "precision", "quick", "digits")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(BENCH)
    yield {name: importlib.import_module(name) for name in PARTS}
    for name in PARTS:
        del sys.modules[name]


@pytest.fixture
def tiny(bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell's run in seconds: a few steps from a teacher that has learned nothing."""
    model, info = load_model("cnn", num_classes=10, image_size=32, mean=(0.3,) * 3, std=(0.3,) * 3)
    save_network(tmp_path / "cnn.safetensors", model, info)
    cls = bench["cells"].Cell
    resolved = cls.resolved

    def cut_down(cell: Any) -> TrainConfig[Any]:
        config = resolved(cell)
        sizes = {"epochs": 12, "warmup_epochs": 1, "warmup_rounds": 1, "rounds": 1, "synthesis_steps": 1}
        sizes |= {"student_steps": 1, "generator_width": 8, "noise_features": 8, "synthesis_batch_size": 10}
        return replace(
            config,
            method=replace(config.method, **sizes, batch_size=8),
            teacher="cnn",
            student="cnn_s",
            train_teacher=False,
            teacher_weights=tmp_path / "cnn.safetensors",
            precision="fp32",
            eval=replace(config.eval, every=0),
        )

    monkeypatch.setattr(cls, "resolved", cut_down)


def interrupt_when_there(file_in: Path) -> threading.Thread:
    """Ctrl-C once the first checkpoint lies somewhere under the folder."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not list(file_in.glob("*/checkpoints/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.usefixtures("tiny")
def test_a_stopped_run_goes_on_and_a_finished_one_is_not_repeated(
    bench: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, cache, results = bench["cells"].method_cells(["nayer"], [0]), tmp_path / "cache", tmp_path / "out.jsonl"

    def make() -> bool:
        return bench["runs"].Runner(cache, results, jobs=2).run(cells)

    interrupter = interrupt_when_there(cache)
    assert not make()
    interrupter.join()
    assert not results.exists()
    assert make()
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert "goes on" in capsys.readouterr().out
    assert "resumed after" in folder.with_suffix(".log").read_text()
    (line,) = bench["runs"].read_lines(results)
    record = json.loads((folder / "run.json").read_text())
    assert line["run_hash"] in folder.name
    assert {key: line[key] for key in ("top1_last", "seed", "config_hash")} == {
        key: record[key] for key in ("top1_last", "seed", "config_hash")
    }
    made = (folder / "run.json").stat().st_mtime_ns
    assert make()
    assert (folder / "run.json").stat().st_mtime_ns == made
    assert len(bench["runs"].read_lines(results)) == 1


def test_hashes_tell_apart_what_computes_something_else(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = bench["cells"]
    base = cells.Recipe.of(cells.Cell("nayer", "", 0))
    assert base.run_hash == cells.Recipe.of(cells.Cell("nayer", "", 0)).run_hash
    others = [cells.Recipe.of(cells.Cell("nayer", "", 1)), cells.Recipe.of(cells.Cell("muse", "", 0))]
    others.append(cells.Recipe(base.cell, replace(base.config, method=replace(base.config.method, bn_weight=9.0))))
    others += map(cells.Recipe.of, cells.ablation_cells(["nayer"], [0])[1:])
    others += map(cells.Recipe.of, cells.method_cells(["nayer"], [0], "fp32"))
    assert len({recipe.recipe_hash for recipe in (base, *others)}) == 1 + len(others)
    monkeypatch.setattr(cells.sklearn, "__version__", "0.0")
    newer = cells.Recipe.of(base.cell)
    assert (newer.recipe_hash, newer.run_hash != base.run_hash) == (base.recipe_hash, True)
    monkeypatch.setattr(cells, "GOLDEN", tmp_path)
    assert cells.Recipe.of(base.cell).recipe_hash != base.recipe_hash


def test_ablations_change_what_they_name(bench: dict[str, ModuleType]) -> None:
    cells = bench["cells"]
    expected = {
        ("nayer", "without re-initialised noisy layers"): {"method.reset_noise": False},
        ("nayer", "with the student in train mode, as released"): {"method.student_mode": "released"},
        ("ssdkd", "without priorities"): {"method.priority_sampling": False},
        ("msarc", "without attention"): {"method.attention": False},
        ("msarc", "without consistency"): {"method.msarc_weight": 0.0},
        ("msarc", "without meta-learning"): {"method.start": "carry"},
        ("hidfd", "without feature integration"): {"method.blend_weight": 0.0, "method.trans_weight": 0.0},
        ("hidfd", "without category frequency smoothing"): {"method.reg_weight": 0.0},
        ("hidfd", "with class weights of mean 1"): {"method.reg_mean_one": True},
        ("hidfd", "without data inflation"): {"method.inflation": 1},
        ("hidfd", "without the teacher's classifier"): {"method.alignment": "kd"},
    }
    for method in ("muse-s", "muse"):
        expected[method, "without CAM"] = {"method.cam_weight": 0.0}
        expected[method, "without embedding diversity"] = {"method.ed_weight": 0.0, "method.aed_weight": 0.0}
    found = {}
    for method, variants in cells.ABLATIONS.items():
        whole = dict(flatten(cells.Cell(method, "", 0).resolved()))
        for variant in variants:
            part = dict(flatten(cells.Cell(method, variant, 0).resolved()))
            found[method, variant] = {key: value for key, value in part.items() if value != whole[key]}
    assert found == expected


def line_of(bench: dict[str, ModuleType], cell: Any, top1: float) -> dict[str, Any]:
    return {
        "recipe_hash": bench["cells"].Recipe.of(cell).recipe_hash,
        "seed": cell.seed,
        "top1_last": top1,
        "teacher_top1": 0.99,
        "agreement": 0.98,
        "images_synthesized": 1600,
        "generator_steps": 300,
        "student_steps": 1000,
        "synthesis_seconds": 60.4,
        "distillation_seconds": 30.0,
        "precision": "bf16",
        "device": "CPU (AVX512, 1 threads)",
        "processor": "P",
        "versions": {"torch": "2.13"},
        "git_sha": "0123456789abcdef",
        "jobs": 1,
        "date": "2026-01-01T00:00:00+00:00",
    }


def test_table(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    """Three seeds of one method, one of another; of two lines for a run the later; a line of an older preset."""
    cells = bench["cells"].method_cells(["fast", "cmi"], [0, 1, 2])
    fast, cmi = ([cell for cell in cells if cell.method == name] for name in ("fast", "cmi"))
    lines = [line_of(bench, fast[0], 0.5)]
    lines += [line_of(bench, cell, top1) for cell, top1 in zip(fast, (0.95, 0.96, 0.97), strict=True)]
    lines += [line_of(bench, cmi[0], 0.9), line_of(bench, cmi[1], 0.9) | {"recipe_hash": "of an older preset"}]
    text = bench["table"].table(cells, lines)
    row = (
        "| Fast-5 | 96.00 % (95.00 to 97.00) | 99.00 % | 3.00 | 98.00 % | 1,600 | 300 + 1,000 | 60 s + 30 s |\n"
        "| CMI | 90.00 % (1 of 3 seeds) |"
    )
    assert row in text
    assert text.endswith(
        "Seeds 0, 1, 2. P, CPU (AVX512, 1 threads); bf16; torch 2.13; 2026-01-01. Commits: 0123456789ab."
    )
    assert "| CMI | not measured |" in bench["table"].table(cells, lines[:-2])
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- digits -->\nold\n<!-- /digits -->\nafter\n")
    bench["table"].write_between(page, "digits", text)
    assert page.read_text() == f"before\n<!-- digits -->\n{text}\n<!-- /digits -->\nafter\n"
    with pytest.raises(SystemExit, match="no <!-- ablations -->"):
        bench["table"].write_between(page, "ablations", text)


def test_precision_table(bench: dict[str, ModuleType]) -> None:
    """Against figures computed by hand; a run that was not computed in bf16 is no bf16 run, whatever it asked for."""
    make, lines = bench["cells"].method_cells, []
    fp32 = {"precision": "fp32", "distillation_seconds": 120.4}
    for method, bf16_top1, fp32_top1 in (
        ("fast", (0.95, 0.96, 0.97), (0.96, 0.97, 0.98)),
        ("muse", (0.9,) * 3, (1,) * 3),
    ):
        lines += [line_of(bench, cell, top1) for cell, top1 in zip(make([method], [0, 1, 2]), bf16_top1, strict=True)]
        cells = make([method], [0, 1, 2], "fp32")
        lines += [line_of(bench, cell, top1) | fp32 for cell, top1 in zip(cells, fp32_top1, strict=True)]
    lines += [line_of(bench, cell, 0.5) | {"precision": "fp32"} for cell in make(["cmi"], [0])]
    text = bench["precision"].precision_table(["fast", "muse", "cmi"], [0, 1, 2], lines, "fp32")
    spread = "96.00 % (95.00 to 97.00) | 97.00 % (96.00 to 98.00)"
    assert f"| Fast-5 | {spread} | +1.00 | yes | 99.00 % and 99.00 % | 2.00 |" in text
    assert "| +10.00 | no |" in text
    assert "| CMI | not measured | not measured |" in text
    # variances 1, 1, 0, 0; two means of three: sqrt(0.5 * 2 / 3)
    assert "over all methods and both precisions, is 0.71 points. 1 of 2 differences" in text
    assert (
        "within two standard errors (1.15 points); their mean is +5.50 points, with a standard error of 0.41." in text
    )


def test_quick_table(bench: dict[str, ModuleType]) -> None:
    """Against the digits preset over the same seeds, and only over those."""
    cells = bench["cells"]
    quick = {"time_share": 0.3, "student_steps": 400}
    lines = [
        line_of(bench, cell, top1)
        for cell, top1 in zip(cells.method_cells(["fast"], [0, 1, 2]), (1, 0.98, 0), strict=True)
    ]
    found = zip(cells.method_cells(["fast"], [0, 1], preset=cells.QUICK), (0.99, 0.97), strict=True)
    lines += [line_of(bench, cell, top1) | quick for cell, top1 in found]
    lines += [line_of(bench, cell, 0.9) | quick for cell in cells.method_cells(["muse"], [0], preset=cells.QUICK)]
    text = bench["quick"].quick_table(["fast", "muse", "cmi"], [0, 1, 2], lines)
    assert "| Fast-5 | 98.00 % (97.00 to 99.00) | 99.00 % | 0.990 | 30 % | 1,600 | 300 + 400 |" in text
    assert "| MUSE | 90.00 % (seed 0) | not measured |  | 30 % | 1,600 | 300 + 400 |" in text
    assert "| CMI | not measured |" in text


@pytest.mark.parametrize("method", METHODS)
def test_the_quick_preset_is_the_digits_preset_cut_down(bench: dict[str, ModuleType], method: str) -> None:
    """The same teacher, networks and losses: only counts are smaller, and answers are kept where the method allows."""
    cells = bench["cells"]
    quick, whole = (
        dict(flatten(cells.Cell(method, "", 0, preset=name).resolved())) for name in (cells.QUICK, "digits")
    )
    changed = {key for key in whole if quick[key] != whole[key]}
    counts = {"epochs", "warmup_epochs", "warmup_rounds", "rounds", "synthesis_steps", "full_images", "student_steps"}
    assert "method.epochs" in changed
    assert changed <= {f"method.{count}" for count in {*counts, "student_lr_steps"}} | {"cache_teacher_logits"}
    assert quick["cache_teacher_logits"] in (0, 8)


def test_the_page_has_a_row_for_each_method(bench: dict[str, ModuleType]) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    table = page.partition("<!-- digits -->")[2].partition("<!-- /digits -->")[0]
    for method in METHODS:
        assert f"| {bench['cells'].TITLES[method]} |" in table
