"""A network of the user's own goes through training, evaluation and resuming like any other; that its code is run is
said, and another code is refused.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dfkd_fast.cli.eval import EvalOptions
from dfkd_fast.cli.main import main
from dfkd_fast.cli.teacher_info import InfoOptions
from dfkd_fast.config.own_networks import folder_name, own_network, resolved, unplaced
from dfkd_fast.config.sources import load_run
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.own_code import source_files
from dfkd_fast.models.torchvision_cpu import ensure_importable

CODE = """
from torch import nn
from parts import block

class Net(nn.Module):
    def __init__(self, width=8, in_chans=3, classes=3, pools=True):
        super().__init__()
        self.block, self.fc, self.pools = block(in_chans, width), nn.Linear(width, classes), pools

    def forward(self, x):
        return {"logits": self.fc(self.block(x).relu().mean((2, 3))), "other": x}

def small():
    return Net(width=4)

BUILT = small()

def broken(path="nowhere"):
    raise FileNotFoundError(path)

def number():
    return 3
"""
PARTS = """
from torch import nn

def block(ins, outs):
    return nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs))
"""
WIDE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, WIDTH)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))
"""
SHAPE: dict[str, Any] = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3}
SIZES = ("--epochs", "2", "--student-steps", "1", "--batch-size", "4", "--synthesis-batch-size", "4")
SMALL = (*SIZES, "--device", "cpu", "--image-size", "8")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network of one's own, a part of it in a file beside it, and weights for it."""
    monkeypatch.chdir(tmp_path)
    parts = f"parts_{abs(hash(str(tmp_path)))}"  # each test has its own: Python keeps what it has imported
    (tmp_path / "net.py").write_text(CODE.replace("parts", parts))
    (tmp_path / f"{parts}.py").write_text(PARTS)
    torch.manual_seed(0)
    header = '{"name": "unused", "num_classes": 3, "image_size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}'
    save_file(load_model("net.py:Net", **SHAPE)[0].state_dict(), "net.safetensors", {"dfkd_fast": header})
    return tmp_path


def train(*flags: str, student: str = "net.py:small") -> int:
    teacher = ("--teacher", "net.py:Net", "--teacher-weights", "net.safetensors")
    return main(["train", "dafl", *teacher, "--student", student, *SMALL, "--run-dir", "run", *flags])


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("dfkd-fast: ")


def images(root: Path) -> str:
    from PIL import Image

    for index in range(3):
        folder = root / "test" / f"class{index}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (index * 90, 0, 0)).save(folder / "0.png")
    return str(root)


def test_a_run_from_beginning_to_evaluation(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert train("--stop-after-epoch", "1") == 0
    assert train("--resume") == 0
    with safe_open("run/student.safetensors", framework="pt") as file:
        assert f'"name": "{code}/net.py:small"' in file.metadata()["dfkd_fast"]
    data = images(code / "data")
    assert main(["eval", "run", "--data", data]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main(["eval", "run/student.safetensors", "--data", data]) == 2
    assert line_of(capsys).endswith(
        f"its network is code, {code}/net.py:small; to run it give --student {code}/net.py:small"
    )
    named = ("--student", "net.py:Net", "--student-args", "width=4")
    assert main(["eval", "run/student.safetensors", "--data", data, *named]) == 0


@pytest.mark.parametrize("changed", ["net.py", "parts"])
def test_a_run_goes_on_with_the_same_code_only(code: Path, capsys: pytest.CaptureFixture[str], changed: str) -> None:
    assert train("--stop-after-epoch", "1") == 0
    capsys.readouterr()
    file = next(code.glob(f"{changed}*.py")) if changed == "parts" else code / changed
    file.write_text(file.read_text() + "\n# another\n")
    assert main(["train", "--resume", "run"]) == 2
    line = line_of(capsys)
    assert line.startswith("--resume run: the code of its networks is not what it was: ")
    assert file.name in line
    assert "put the old code back" in line
    file.write_text(file.read_text().removesuffix("\n# another\n"))
    assert main(["train", "--resume", "run"]) == 0
    file.write_text(file.read_text() + "\n# another\n")
    assert main(["eval", "run", "--data", images(code / "data")]) == 2
    assert file.name in line_of(capsys)


def test_the_same_code_elsewhere_is_taken_given_anew(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Renamed, too; the arguments stay, the student is the same, and the run says by then where its code lies. Another
    code, other arguments or no code at all are refused, and nothing is touched.
    """
    named = ("--teacher-args", "width=8", "--teacher-weights", f"{code}/net.safetensors")
    assert train(*named) == 0
    whole = load_file("run/student.safetensors")
    shutil.rmtree("run")
    assert train(*named, "--stop-after-epoch", "1") == 0
    away = Path("away").absolute()
    away.mkdir()
    for file in code.glob("*.py"):
        file.rename(away / file.name.replace("net.py", "mine.py"))
    parts = next(away.glob("parts*.py"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    anew = ("train", "--resume", "run", "--teacher", "away/mine.py:Net", "--student", "away/mine.py:small")
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    hint = "where it has moved, give --teacher anew, as FILE.py:NAME"
    assert line_of(capsys) == f"--resume run: --teacher {code}/net.py:Net?width=8: no such file; {hint}"
    for file in (parts, away / "mine.py"):
        kept = file.read_text()
        file.write_text(kept + "\n# another\n")
        assert main([*anew]) == 2
        now, then = (sha256(text.encode()).hexdigest()[:12] for text in (kept + "\n# another\n", kept))
        assert f"{file.name} is {now}..., was {then}... (--teacher {away}/mine.py:Net?width=8)" in line_of(capsys)
        file.write_text(kept)
    assert main([*anew, "--teacher-args", "width=9"]) == 2
    assert "a resumed run keeps its config" in line_of(capsys)
    assert main([*anew[:4], "away/mine.py:small"]) == 2
    assert "a resumed run keeps its config" in line_of(capsys)
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert main([*anew]) == 0
    done = load_file("run/student.safetensors")
    assert all(torch.equal(done[name], value) for name, value in whole.items())
    assert load_run(Path("run")).teacher == f"{away}/mine.py:Net?width=8"
    assert main(["eval", "run", "--data", images(code / "data")]) == 0


def test_eval_asks_for_the_students_code_alone(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher's is not run, so it may change or go."""
    Path("other.py").write_text(Path("net.py").read_text())
    assert train(student="other.py:small") == 0
    Path("net.py").unlink()
    data = images(code / "data")
    assert main(["eval", "run", "--data", data]) == 0
    Path("other.py").rename("third.py")
    capsys.readouterr()
    assert main(["eval", "run", "--data", data]) == 2
    assert "give --student anew, as FILE.py:NAME" in line_of(capsys)
    assert main(["eval", "run", "--data", data, "--student", "third.py:small"]) == 0


def test_that_code_is_run_is_said_before_it_is(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code / "loud.py").write_text("print('at work')\n" + (code / "net.py").read_text())
    capsys.readouterr()
    load_model("loud.py:Net", **SHAPE)
    said, worked = capsys.readouterr().out.splitlines()
    assert said == "--teacher loud.py:Net: runs the code of loud.py"
    assert worked == "at work"


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(code: Path, channels: int) -> None:
    shape = {"image_size": 8, "mean": (0.5,) * channels, "std": (0.2,) * channels}
    spec = resolved("net.py:Net", [f"in_chans={channels}", "classes=4"], "--teacher")
    model, info = load_model(spec, **shape)
    assert (info.in_chans, info.num_classes) == (channels, 4)
    assert model(torch.zeros(2, channels, 8, 8)).shape == (2, 4)
    with pytest.raises(UserError, match=rf"cannot take images of 8x8 pixels and {channels} channels"):
        load_model("net.py:Net?in_chans=7", **shape)


def test_arguments_are_python_values(code: Path) -> None:
    spec = resolved("net.py:Net", ["width=12", "pools=false"], "--student")
    model: Any = load_model(spec, **SHAPE)[0]
    assert (model.fc.in_features, model.pools) == (12, False)
    own = own_network("a.py:F?x=1%2C2&y=some%20text&z=%2Bshared3&s=3e-1")
    assert own is not None
    assert own.values() == {"x": (1, 2), "y": "some text", "z": "+shared3", "s": 0.3}


def test_networks_of_two_folders_have_each_their_own_parts(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text("from layers_beside import WIDTH\nfrom torch import nn\n" + WIDE)
        (tmp_path / name / "layers_beside.py").write_text(f"WIDTH = {width}\n")
    for name, width in (("a", 4), ("b", 6), ("a", 4)):
        model: Any = load_model(f"{tmp_path / name}/net.py:Net", **SHAPE)[0]
        assert model.fc.out_features == width


def test_a_part_that_is_imported_when_the_network_runs(tmp_path: Path) -> None:
    """Of two parts of one name only one can be found by then: it was the other network's."""
    for name, content in (("a", "SCALE = 1\n"), ("b", "SCALE = 2\n"), ("c", "SCALE = 1\n")):
        (tmp_path / name).mkdir()
        late = WIDE.replace("WIDTH", "3").replace("return ", "from late_beside import SCALE\n        return SCALE * ")
        (tmp_path / name / "net.py").write_text("from torch import nn\n" + late)
        (tmp_path / name / "late_beside.py").write_text(content)
    load_model(f"{tmp_path}/a/net.py:Net", **SHAPE)
    load_model(f"{tmp_path}/c/net.py:Net", **SHAPE)
    with pytest.raises(UserError, match=r"late_beside is imported within a function, and is both \S+ and \S+; rename"):
        load_model(f"{tmp_path}/b/net.py:Net", **SHAPE)
    load_model(f"{tmp_path}/a/net.py:Net", **SHAPE)  # what was refused stands in nobody's way


def test_a_part_that_an_installed_module_hides(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("WIDTH = 4\nfrom torch import nn\nimport safetensors\n" + WIDE)
    (tmp_path / "safetensors.py").touch()
    with pytest.raises(
        UserError, match=r"its import of safetensors takes \S+__init__.py, not \S+/safetensors.py; rename"
    ):
        load_model(f"{tmp_path}/net.py:Net", **SHAPE)


def test_a_module_by_its_name(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = code / f"package_{code.name.replace('-', '_')}"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets" / "__init__.py").touch()
    (package / "nets" / "plain.py").write_text(
        "from ..parts import block\n"
        + textwrap.dedent(CODE).split("import block\n")[1].join(["from torch import nn\n", ""])
    )
    (package / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(code))
    spec = f"{package.name}.nets.plain:Net"
    assert load_model(spec, **SHAPE)[1].num_classes == 3
    own = own_network(spec)
    assert own is not None
    files = [f"{package.name}/{name}" for name in ("__init__.py", "nets/__init__.py", "nets/plain.py", "parts.py")]
    assert set(source_files(own, "--teacher")) == set(files)


def test_a_modules_part_that_an_installed_module_hides(code: Path) -> None:
    """A module by its name is watched as a file is."""
    name = f"plain_{code.name.replace('-', '_')}"
    (code / f"{name}.py").write_text("WIDTH = 4\nfrom torch import nn\nimport safetensors\n" + WIDE)
    (code / "safetensors.py").touch()
    with pytest.raises(UserError, match=r"its import of safetensors takes \S+__init__.py, not \S+/safetensors.py"):
        load_model(f"{name}:Net", **SHAPE)


def test_a_packages_own_code_is_found_without_being_run(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that its hash is compared first; and where it fails, that is one line."""
    package = code / f"failing_{code.name.replace('-', '_')}"
    package.mkdir()
    (package / "__init__.py").write_text("open('ran', 'w').close()\nraise RuntimeError('no such luck')\n")
    (package / "net.py").write_text("from torch import nn\n")
    own = own_network(f"{package.name}.net:Net")
    assert own is not None
    assert set(source_files(own, "--teacher")) == {f"{package.name}/__init__.py", f"{package.name}/net.py"}
    assert not (code / "ran").exists()
    capsys.readouterr()
    assert train(student=str(own)) == 2
    assert "its code fails (RuntimeError: no such luck)" in line_of(capsys)


def test_more_files_than_can_be_watched(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfkd_fast.models.own_code._MOST_FILES", 1)
    own = own_network("net.py:Net")
    assert own is not None
    with pytest.raises(UserError, match="imports more than 1 files below"):
        source_files(own, "--teacher")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere.py:Net", "nowhere.py:Net: no such file"),
        ("net.py:Nett", "net.py:Nett: NAME Nett: did you mean Net? choose Net, small, broken or number"),
        ("net.py:BUILT", "is a Net; name a class or function that returns an nn.Module"),
        ("net.py:number", "returns a int, not an nn.Module"),
        ("net.py:broken", "broken() fails (FileNotFoundError: nowhere); see --teacher-args"),
        ("net.py:Net?wide=3", "fails (TypeError: "),
        ("torch.nowhere:Net", "no module torch.nowhere; choose "),
        ("syntax.py:Net", "its code fails (SyntaxError: "),
        ("exits.py:Net", "its code fails (SystemExit: 3)"),
        ("net.py:Net?classes=4&in_chans=4", "cannot take images of 8x8 pixels and 3 channels"),
    ],
)
def test_mistakes_are_one_line(code: Path, spec: str, words: str) -> None:
    (code / "syntax.py").write_text("def Net(:\n")
    (code / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError) as caught:
        load_model(spec, **SHAPE)
    assert str(caught.value).startswith(f"--teacher {spec.partition(':')[0]}:")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--teacher", "--student", "--network", "teacher info", "eval"])
def test_hints_name_flags_that_the_command_has(code: Path, flag: str) -> None:
    """Of a network that cannot be built, and of one whose code makes numbers that are not finite."""
    (code / "nan.py").write_text(
        "import torch\n\ndef Net():\n    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))\n"
        "    torch.nn.init.constant_(net[1].bias, float('nan'))\n    return net\n"
    )
    options = {"eval": EvalOptions, "teacher info": InfoOptions, "--network": InfoOptions}.get(flag, TrainConfig)
    known = {f"--{field.name.replace('_', '-')}" for field in fields(options)}
    for spec in ("net.py:broken", "nan.py:Net"):
        with pytest.raises(UserError) as caught:
            load_model(spec, flag=flag, **SHAPE)
        assert set(re.findall(r"--[a-z][a-z-]*", str(caught.value))) <= known, str(caught.value)


def test_mistakes_of_a_command_line(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert train("--student-args", "width") == 2
    assert line_of(capsys) == "--student-args width: write NAME=VALUE"
    assert train("--student-args", "width=3", student="cnn_s") == 2
    assert line_of(capsys) == "--student-args width=3: only for FILE.py:NAME or package.module:NAME, not cnn_s"
    assert train("--student-args", "classes=4", student="net.py:Net") == 2
    assert "not logits for 3 classes" in line_of(capsys)
    assert not Path("run").exists()


PIXELS = ("--image-size", "8", "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2")


def test_teacher_train_and_info(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images(code / "data")
    (code / "data" / "train").symlink_to(code / "data" / "test")
    assert main(["teacher", "info", "net.py:Net", "--teacher-args", "width=12", *PIXELS]) == 0
    assert "BatchNorm layers  1" in capsys.readouterr().out
    recipe = ("--epochs", "1", "--batch-size", "2", "--device", "cpu", "--precision", "fp32")
    named = ("net.py:Net", "--data", data, "--out", "t.safetensors", "--teacher-args", "width=6")
    status = main(["teacher", "train", *named, *recipe])
    assert status == 0, capsys.readouterr().err
    assert "fc.weight" in load_model("net.py:Net?width=6", weights=Path("t.safetensors"))[0].state_dict()


def test_info_of_a_file_builds_the_network_that_is_named(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(load_model("net.py:Net?width=12", **SHAPE)[0].state_dict(), "wide.safetensors")
    named = ("teacher", "info", "wide.safetensors", *PIXELS)
    assert main([*named, "--network", "net.py:Net", "--teacher-args", "width=12"]) == 0
    assert "its answer (num classes)" in capsys.readouterr().out
    Path("fresh.py").write_text(Path("net.py").read_text() + "# fresh\n")
    assert main([*named, "--network", "fresh.py:Net", "--teacher-args", "width=12"]) == 0
    said, first, *_ = capsys.readouterr().out.splitlines()
    assert (said.startswith("--network "), first.startswith("network ")) == (True, True), "not between the table's rows"
    assert main([*named, "--network", "net.py:Net"]) == 2
    assert "does not fit" in line_of(capsys)
    assert main([*named, "--teacher-args", "width=12"]) == 2
    assert line_of(capsys) == "--teacher-args width=12: say by --network whose they are"


class Processor:
    """Stands for transformers' AutoImageProcessor."""

    kept: ClassVar[dict[str, Any]] = {}

    @classmethod
    def from_pretrained(cls, place: str) -> Processor:
        if place != "me/net":
            raise OSError(f"{place} has no preprocessor_config.json\nmore")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return self.kept


KEPT = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.2, 0.2],
    "size": {"height": 8, "width": 8},
    "resample": 3,
}


def of_transformers(monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any], place: str = "me/net") -> None:
    """Let net.py:Net be built as transformers builds networks."""
    fake = ModuleType("transformers")
    fake.AutoImageProcessor = Processor  # type: ignore[attr-defined]
    monkeypatch.setattr(Processor, "kept", kept)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    config = f"SimpleNamespace(_name_or_path={place!r}, id2label={{0: 'ant', 1: 'bee', 2: 'cow'}})"
    Path("hugging.py").write_text(
        "from types import SimpleNamespace\nimport net\n\nclass Net(net.Net):\n"
        f"    __module__ = 'transformers.models.net'\n    config = {config}\n"
    )


def test_a_transformers_network_brings_its_processors_values(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come behind flags; what they do not say in our terms has to be stated."""
    of_transformers(monkeypatch, KEPT)
    info = load_model("hugging.py:Net")[1]
    assert (info.mean, info.std, info.image_size, info.interpolation) == (
        (0.4, 0.5, 0.6),
        (0.2,) * 3,
        (8, 8),
        "bicubic",
    )
    assert (info.class_names, info.sources["mean"]) == (("ant", "bee", "cow"), "the processor of me/net")
    assert load_model("hugging.py:Net", mean=(0.1,) * 3)[1].mean == (0.1,) * 3
    for changed, unknown in (
        ({"size": {"height": 8}}, "image_size"),
        ({"rescale_factor": 1 / 127.5}, "mean, std"),
        ({"do_rescale": False}, "mean, std"),
    ):
        of_transformers(monkeypatch, KEPT | changed)
        with pytest.raises(UserError, match=f"^--teacher hugging.py:Net: {unknown} not known: "):
            load_model("hugging.py:Net")
    of_transformers(monkeypatch, KEPT | {"do_normalize": False, "do_center_crop": True, "crop_size": 9})
    plain = load_model("hugging.py:Net")[1]
    assert (plain.mean, plain.std, plain.image_size) == ((0.0,) * 3, (1.0,) * 3, (9, 9))


def test_the_pages_file_for_transformers_works(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "networks.md").read_text()
    (text,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    of_transformers(monkeypatch, KEPT, "me/net")
    (code / "hf.py").write_text(text)
    hugging = load_model("hugging.py:Net")[0]
    auto = SimpleNamespace(from_pretrained=lambda place: hugging if place == "me/net" else None)
    monkeypatch.setattr(sys.modules["transformers"], "AutoModelForImageClassification", auto, raising=False)
    info = load_model(resolved("hf.py:teacher", ["place=me/net"], "--teacher"))[1]
    assert info.sources["mean"] == "the processor of me/net"


def test_a_processor_that_cannot_be_read_is_said(
    code: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_transformers(monkeypatch, KEPT, "me/other")
    with pytest.raises(UserError, match="image_size, mean, std not known"):
        load_model("hugging.py:Net")
    said = "the image processor of me/other cannot be read (me/other has no preprocessor_config.json)"
    assert f"--teacher hugging.py:Net: {said}" in capsys.readouterr().out.splitlines()


def test_a_timm_network_built_by_code_brings_its_configuration(code: Path) -> None:
    """Unless code is around it, which may prepare images itself."""
    (code / "built.py").write_text(
        "import timm\nfrom torch import nn\n\ndef net():\n    return timm.create_model('resnet10t', num_classes=3)\n\n"
        "def around():\n    return nn.Sequential(net())\n"
    )
    ensure_importable()
    info = load_model("built.py:net", image_size=32)[1]
    assert (info.num_classes, info.mean, info.interpolation) == (3, (0.485, 0.456, 0.406), "bicubic")
    assert info.sources["mean"] == "timm's configuration"
    with pytest.raises(UserError, match="mean, std not known"):
        load_model("built.py:around", image_size=32)


def test_names_of_ours_and_of_libraries_are_no_code() -> None:
    for spec in ("cnn", "tv:resnet18", "timm:hf_hub:x/y", "resnet18+shared64x4"):
        assert own_network(spec) is None
        assert resolved(spec, (), "--teacher") == spec
    assert resolved("/a/c++/n.py:Net+shared8x2", ["d=2"], "--student") == "/a/c++/n.py:Net?d=2+shared8x2"
    assert folder_name("/a/c++/n.py:Net?d=2") == "n_Net"
    assert folder_name("my.package.nets:Net") == "nets_Net"
    assert folder_name("tv:resnet18") == "tv_resnet18"


def test_the_order_of_arguments_makes_no_other_network() -> None:
    assert unplaced("/a/n.py:Net?width=3&depth=2+shared8") == unplaced("/b/n.py:Net?depth=2&width=3+shared8")
    assert unplaced("/a/n.py:Net?width=3") != unplaced("/a/n.py:Net?width=4")
