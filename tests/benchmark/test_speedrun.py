"""The speedrun from end to end at tiny size: made pictures, tiny networks, a limit that cuts, and its rules."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "methods"))
from tiny_runs import write_teacher  # noqa: E402

from dfkd_fast.config.sources import default_config, load_config  # noqa: E402

ENTRY = """
title = "Tiny"
method = "dafl"
flags = ["--epochs", "4", "--student-steps", "2", "--batch-size", "8", "--synthesis-batch-size", "8",
         "--generator-width", "16", "--latent-dim", "16"]
search = "none"
seeds = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of ten classes, a teacher that has seen nothing, and an entry."""
    folder = tmp_path_factory.mktemp("speedrun")
    draw = np.random.default_rng(0)
    for label in range(10):
        for split in ("train", "test"):
            (folder / "data" / split / str(label)).mkdir(parents=True)
            picture = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / "data" / split / str(label) / "0.png")
    write_teacher(folder / "teacher.safetensors")
    (folder / "tiny.toml").write_text(ENTRY)
    return folder


def speedrun(made: Path, monkeypatch: pytest.MonkeyPatch, minutes: str) -> int:
    """The command, in this process; its runs are processes of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "speedrun"))
    networks = f"--teacher cnn --teacher-weights {made}/teacher.safetensors --student cnn_s"
    places = ["--data", str(made / "data"), "--cache", str(made / "cache"), "--results", str(made / "lines.jsonl")]
    options = [*places, "--networks", networks, "--look", "0.05", "--minutes", minutes]
    monkeypatch.setattr(sys, "argv", ["run.py", "--entries", str(made / "tiny.toml"), *options])
    return int(script("run").main())


def script(name: str) -> Any:
    """A module of bench/speedrun; other benchmarks have modules of the same names."""
    for known in ("run", "table", "entry"):
        sys.modules.pop(known, None)
    return importlib.import_module(name)


def test_a_limit_cuts_a_run_and_a_greater_one_takes_it_up(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each limit, never twice; the curve is of all epochs, its clock grows over the stop."""
    assert speedrun(made, monkeypatch, "0.000001") == 0, (made / "cache" / "log").read_text()
    assert speedrun(made, monkeypatch, "5") == 0, (made / "cache" / "log").read_text()
    shown = capsys.readouterr().out
    assert "tiny, seed 0: starts in" in shown
    assert "tiny, seed 0: goes on in" in shown
    assert "| Tiny | 1 of 1 | 0 of 1 runs |" in shown
    cut, line = lines(made)
    assert (cut["curve"], cut["last"], cut["minutes"]) == ([], None, 0.000001)
    seconds = [point[0] for point in line["curve"]]
    assert len(seconds) == 4
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 60
    assert line["reached"] == {"70": None, "80": None, "85": None}
    assert (line["entry"], line["seed"], line["minutes"], line["ended"]) == ("tiny", 0, 5, True)
    assert line["command"].startswith("dfkd-fast train dafl --teacher cnn")
    assert " --data DATA " in line["command"]
    assert speedrun(made, monkeypatch, "5") == 0
    assert "seed 0" not in capsys.readouterr().out
    assert len(lines(made)) == 2


def test_what_is_read_off_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation that has it, though a later one falls back; medians over seeds; who never gets there."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "speedrun"))
    table, entry = script("table"), sys.modules["entry"]
    curve = [(10.0, 0.5), (20.0, 0.71), (30.0, 0.69), (40.0, 0.8)]
    assert table.reached(curve) == {"70": 20.0, "80": 40.0, "85": None}
    runs = [
        {"entry": "x", "minutes": 45, "last": 0.8, "reached": {"70": at, "80": None if at > 25 else 60.0, "85": None}}
        for at in (20.0, 30.0, 22.0)
    ]
    shown = table.table([entry.Entry(name="x", title="X", method="nayer", search="3 minutes")], runs, 45)
    assert "| X | 3 of 3 | 22 (20 to 30) | 2 of 3 runs (60 (60 to 60)) | 0 of 3 runs | 80.00" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"dafl"', '"none"'), "method 'none'; choose one of"),
        (('"--epochs", "4"', '"--collected", "x"'), "--collected is the same for all entries; leave it out"),
        (("seeds = 1", "sides = 1"), "its keys are title, method, search, preset, flags, seeds"),
        (('title = "Tiny"', "title"), "no valid TOML"),
    ],
)
def test_an_entry_that_breaks_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], message: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "speedrun"))
    (tmp_path / "tiny.toml").write_text(ENTRY.replace(*change))
    with pytest.raises(SystemExit) as raised:
        script("entry").read_entry(str(tmp_path / "tiny.toml"))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_entries_here_keep_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can be read, and its settings are ones that a run takes."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "speedrun"))
    entry = script("entry")
    assert {"nayer", "ssdkd", "fast", "procedural", "cpnet"} <= set(entry.names())
    for name in entry.names():
        found = entry.read_entry(name)
        method = found.arguments(0, ["--teacher", "resnet56", "--student", "resnet20"], "digits")
        flags = method[2:] if not found.preset else method[4:]
        load_config(default_config(found.method), preset=found.preset or None, flags=flags).check()


def lines(made: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / "lines.jsonl").read_text().splitlines()]
