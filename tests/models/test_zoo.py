"""The zoo: one network is at hand without any setting, others come from a folder or are fetched, none unchecked."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import dfkd_fast
from dfkd_fast.catalog import MODELS
from dfkd_fast.cli.main import main
from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.zoo.cards import ZOO, Card
from dfkd_fast.models.zoo.files import VARIABLE, zoo_file

IMAGENETS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder and no cache of the machine that runs the tests counts."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a card `zoo:made` is about, where only a URL leads."""
    file = tmp_path / "web" / "made.th"
    file.parent.mkdir()
    state = load_model("resnet20", num_classes=10, mean=IMAGENETS[0], std=IMAGENETS[1])[0].state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 12.5}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    known = {"file": file.name, "sha256": digest, "url": file.as_uri()}
    monkeypatch.setitem(ZOO, "made", ZOO["resnet20"]._replace(**known))
    return file


def message(spec: str = "zoo:made") -> str:
    with pytest.raises(UserError) as error:
        zoo_file(spec, "--teacher")
    return str(error.value)


@pytest.mark.parametrize(("name", "card"), ZOO.items())
def test_a_card(name: str, card: Card) -> None:
    assert card.network in MODELS
    assert card.data_set in DATA_SETS
    assert 0 < card.top1 < 100
    assert len(card.sha256) == 64
    assert card.url.endswith(f"/{card.file}")
    assert card.licence


def test_resnet20_ships_with_its_licence_in_the_package() -> None:
    folder = Path(dfkd_fast.__file__).parent
    listed = tomllib.loads((folder.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path.name for pattern in listed["dfkd_fast"] for path in folder.glob(pattern)}
    assert {ZOO["resnet20"].file, "LICENSE.akamaster"} <= shipped
    assert "Redistribution and use" in (folder / "models/zoo/LICENSE.akamaster").read_text()
    assert zoo_file("zoo:resnet20", "--teacher").parent == folder / "models/zoo"


def test_its_card_says_what_it_expects_whatever_data_set_a_preset_is_for() -> None:
    info = load_model("zoo:resnet20", pretrained=True, data_set="cifar100")[1]
    assert (info.mean, info.std) == IMAGENETS
    assert (info.num_classes, info.image_size, info.class_names[0]) == (10, (32, 32), "airplane")
    assert info.published.startswith("resnet20-12fca82f.th of https://github.com/akamaster/")
    assert info.claimed_by == "best_prec1"
    assert load_model("zoo:resnet20", pretrained=True, mean=(0.5,) * 3)[1].mean == (0.5,) * 3


def test_a_folder_is_searched_and_its_file_checked(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(published.parent))
    assert zoo_file("zoo:made", "--teacher") == published
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    assert f"{published} is not the published file (its SHA-256 is " in message()


def test_a_file_is_fetched_once(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = zoo_file("zoo:made", "--teacher")
    assert found.read_bytes() == published.read_bytes()
    assert f"--teacher zoo:made: fetches {published.as_uri()}" in capsys.readouterr().out
    published.unlink()
    assert zoo_file("zoo:made", "--teacher") == found


def test_other_bytes_are_not_kept(published: Path, tmp_path: Path) -> None:
    published.write_bytes(b"another file")
    assert "cannot be fetched" in message()
    assert list((tmp_path / "cache" / "zoo").iterdir()) == []


def test_one_line_where_it_cannot_be_had(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.unlink()
    said = message()
    assert said.startswith(
        f"--teacher zoo:made: made.th is not in a folder that {VARIABLE} names (it is not set), and "
    )
    assert said.endswith(f"; put it into a folder and name that by {VARIABLE}")
    assert "\n" not in said
    monkeypatch.setenv(VARIABLE, "models")
    assert f"made.th is not in models ({VARIABLE}), and " in message()
    assert message("zoo:resnet5").startswith("--teacher zoo:resnet5: did you mean zoo:resnet56? choose zoo:resnet20, ")


def test_eval_and_info_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shade, name in enumerate(DATA_SETS["cifar10"].class_names):
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * shade, 90, 30)).save(folder / "1.png")
    assert main(["eval", "zoo:resnet20", "--data", "data", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (its zoo card)" in shown
    file = str(zoo_file("zoo:resnet20", "eval"))
    assert main(["eval", file, "--student", "zoo:resnet20", "--data", "data", "--threads", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == shown.splitlines()[-1]
    assert main(["teacher", "info", "zoo:resnet56"]) == 0
    rows = capsys.readouterr().out
    card = ZOO["resnet56"]
    assert all(said in rows for said in (card.source, card.licence, "0.9339", card.sha256, card.file, "[0.485, 0.456"))
    assert "lies at           no place yet" in rows
    assert main(["ls", "zoo"]) == 0
    assert main(["ls", "zoo"]) == 0
    listed = capsys.readouterr().out
    assert all(f"zoo:{name} " in listed and f"{card.top1:.2f} %" in listed for name, card in ZOO.items())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train nayer --teacher zoo:resnet20 --student zoo:resnet20", "--student zoo:resnet20: starts untrained"),
        ("train nayer --teacher zoo:resnet20 --student cnn --train-teacher --data x", "--teacher zoo:resnet20: starts"),
        (
            "train nayer --teacher zoo:resnet20 --student cnn --teacher-weights x",
            "--teacher-weights: --teacher zoo",
        ),
        ("teacher train zoo:resnet20 --data x --out x.safetensors", "teacher train zoo:resnet20: starts untrained"),
        ("eval zoo:resnet20 --student resnet20 --data x", "--student resnet20: zoo:resnet20 is a network by itself"),
    ],
)
def test_what_a_zoo_network_is_no_answer_to(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.startswith(f"dfkd-fast: {said}")
