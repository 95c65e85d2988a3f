"""`--dry-run --on CARD` and `bench methods --on CARD`: predictions, said to be such, of cards that are not here."""

import json
from pathlib import Path

import pytest

from dfkd_fast.cli.main import main


def test_a_dry_run_predicts_for_a_card_that_is_not_here(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--preset", "digits", "--teacher", "cnn", "--student", "cnn_s", "--precision", "bf16"]
    assert main(["train", "nayer", *flags, "--dry-run", "--on", "h100"]) == 0
    text = capsys.readouterr().out
    assert "PREDICTION: nayer, cnn -> cnn_s, 32 px, 10 classes, one NVIDIA H100 80GB HBM3, bf16" in text
    for told in ("predicted GPU-hours", "predicted ms/step", "synthesis, predicted shares: ", "predicted memory "):
        assert told in text
    assert "a prediction from recorded kernels and datasheet x assumed efficiency; nothing was run" in text
    assert not any(tmp_path.iterdir())


def test_bench_predicts_presets(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "methods", "dafl/digits", "--on", "v100", "--results", "out"]) == 0
    text = capsys.readouterr().out
    assert "PREDICTIONS: predicted GPU-hours on one Tesla V100-SXM2-32GB, fp32, by datasheet" in text
    (record,) = map(json.loads, (tmp_path / "out/predicted-v100.jsonl").read_text().splitlines())
    ours = record["ours"]
    assert ours["is_prediction"]
    assert record["unit"] == "predicted GPU-hours"
    assert ours["hours_least"] < ours["hours"] <= ours["hours_most"]
    assert ours["floor_hours"] < ours["hours"]
    assert sum(ours["shares"]["synthesis"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train nayer --on l4", "--on l4: predicts what a dry run would say there; give --dry-run as well"),
        ("train nayer --dry-run --on l4 --devices 2", "--on l4: predicts one card; leave --devices out"),
        ("train nayer --preset digits --dry-run --on t4", "--on t4: choose a100-80gb, "),
        ("train nayer --preset digits --dry-run --on l4 --device cpu", "--device cpu: --on says which card is meant"),
        ("train nayer --preset digits --dry-run --on l4 --compile max", "--compile max: --on knows the steps without"),
        ("train nayer --preset digits --dry-run --on v100 --precision bf16", "--precision bf16: Tesla V100-SXM2-32GB"),
        ("bench methods --on 4090", "--on 4090: did you mean rtx4090? choose"),
        ("bench methods --on l4 --batch-share 0.5", "--batch-share 0.5: --on predicts whole batches; leave it out"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys) -> None:
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
