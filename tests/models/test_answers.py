"""Networks that answer with more than logits hand out their logits; what cannot be run ends in one line, before a run
folder is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dfkd_fast.catalog import MODELS
from dfkd_fast.cli.main import main
from dfkd_fast.errors import UserError
from dfkd_fast.models.answers import check_training, settle_answer
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_kernels import freeze_teacher

SHAPE = (3, 8, 8)


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor | None


@dataclass
class Plain:
    logits: Tensor
    loss: Tensor | None = None


class Output(OrderedDict[str, Tensor]):
    """As transformers' ModelOutput: a dict whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Net(nn.Module):
    """A small network; `answer` makes its output of logits, features and the mode."""

    def __init__(self, answer: Callable[[Tensor, Tensor, bool], Any]) -> None:
        super().__init__()
        self.conv, self.bn, self.fc, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), nn.Dropout()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        pooled = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.answer(self.fc(self.drop(pooled)), pooled, self.training)


ANSWERS: dict[str, Callable[[Tensor, Tensor, bool], Any]] = {
    "tensor": lambda logits, features, training: logits,
    "dict": lambda logits, features, training: {"features": features, "logits": logits},
    "ModelOutput": lambda logits, features, training: Output(logits=logits, hidden=features),
    "dict without that name": lambda logits, features, training: {"features": features, "scores": logits},
    "named tuple": lambda logits, features, training: Named(logits, logits * 2),
    "dataclass": lambda logits, features, training: Plain(logits),
    "features first": lambda logits, features, training: (features, logits),
    "list": lambda logits, features, training: [logits, None],
    "two heads": lambda logits, features, training: (logits, logits * 2),
    "only in training": lambda logits, features, training: Named(logits, logits) if training else logits,
    "another place in training": lambda logits, features, training: (features, logits) if training else (logits,),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_logits_are_taken_in_both_modes_and_frozen(answer: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    net, x = Net(answer), torch.randn(2, *SHAPE)
    names, random, before = list(net.state_dict()), torch.get_rng_state(), net.bn.running_mean.clone()
    assert settle_answer(net, SHAPE, 5, name="--student net") == 5
    assert torch.equal(torch.get_rng_state(), random), "the probe has drawn"
    assert torch.equal(net.bn.running_mean, before), "the probe has moved statistics"
    assert net.training
    assert isinstance(net, Net)
    assert list(net.state_dict()) == names
    torch.manual_seed(1)
    trained = net(x)
    net.eval()
    expected = net.fc(net.bn(net.conv(x)).relu().mean((2, 3)))
    torch.testing.assert_close(net(x), expected)
    assert trained.shape == (2, 5)
    trained.sum().backward()
    torch.testing.assert_close(freeze_teacher(net, channels_last=False)(x).logits, expected)


def test_a_choice_among_outputs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    settle_answer(Net(ANSWERS["two heads"]), SHAPE, 5, name="--student two")
    line = "--student two: answers a tuple with 2 outputs for the classes; the first is taken for its logits\n"
    assert capsys.readouterr().out == line
    settle_answer(Net(ANSWERS["named tuple"]), SHAPE, 5, name="--student named")
    assert not capsys.readouterr().out


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, bool], Any], str]] = {
    "maps": (lambda logits, features, training: logits[:, :, None, None], "answers a tensor of shape 2x5x1x1 to 2"),
    "other classes": (lambda logits, features, training: features, "shape 2x4 to 2 images, not logits for 5 classes"),
    "no tensor": (lambda logits, features, training: None, "answers a NoneType with none that is logits for 5"),
    "features alone": (lambda logits, features, training: (features,), "answers a tuple with none that is logits"),
    "two scores": (lambda a, b, training: {"a": a, "b": a}, "answers a dict with 2 outputs that could be logits"),
    "scores of maps": (lambda a, b, training: {"logits": a[..., None]}, "its logits are of shape 2x5x1 for 2 images"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_answers_without_logits_are_refused(case: tuple[Callable[..., Any], str]) -> None:
    with pytest.raises(UserError) as caught:
        settle_answer(Net(case[0]), SHAPE, 5, name="--student net")
    assert str(caught.value).startswith("--student net: ")
    assert case[1] in str(caught.value)


def test_the_number_of_classes_is_found() -> None:
    assert settle_answer(Net(ANSWERS["dict"]), SHAPE, None, name="net") == 5


def test_outputs_for_several_numbers_of_classes_need_a_word() -> None:
    with pytest.raises(UserError, match="a tuple with outputs of 4 and 5 numbers; say by --num-classes which it is"):
        settle_answer(Net(ANSWERS["features first"]), SHAPE, None, name="net")


def test_the_least_size_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 11), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(UserError, match="it takes 13 pixels and more: choose --image-size 13, or another") as caught:
        settle_answer(net, SHAPE, 5, name="--student net")
    assert str(caught.value).startswith("--student net: cannot take images of 8x8 pixels and 3 channels (")
    assert settle_answer(net, (3, 13, 13), 5, name="--student net") == 5


def test_a_network_for_one_size_or_other_channels_says_so() -> None:
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten())):
        with pytest.raises(UserError, match=r"\(.*\); choose another --image-size or network$"):
            settle_answer(net, SHAPE, 5, name="--teacher net")


def test_a_network_that_cannot_be_trained() -> None:
    class Cut(Net):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x).detach()
            return logits

    check_training(Net(ANSWERS["tensor"]), SHAPE, name="--student net")
    with pytest.raises(UserError, match=r"^--student net: has no gradients \("):
        check_training(Cut(ANSWERS["tensor"]), SHAPE, name="--student net")


def heads(num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """With a tuple in training, as torchvision's networks with auxiliary classifiers."""
    return Net(ANSWERS["only in training"])


def narrow(num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """For images of 19 pixels and more."""
    layers = nn.Conv2d(3, 8, 9), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 11), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, num_classes))


def cut(num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """Passes no gradient to its images."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    return nn.Sequential(Cut(), *narrow(num_classes, in_chans, image_size).children())


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for build in (heads, narrow, cut):
        monkeypatch.setitem(MODELS, build.__name__, (f"{__name__}:{build.__name__}", "test network"))
    return teacher_file(tmp_path, "cnn", 8)


def teacher_file(folder: Path, spec: str, size: int) -> Path:
    model, info = load_model(spec, num_classes=5, image_size=size, mean=(0.5,) * 3, std=(0.2,) * 3)
    save_network(folder / f"{spec}.safetensors", model, info)
    return folder / f"{spec}.safetensors"


def train(teacher: Path, student: str, *flags: str) -> int:
    small = "--epochs 1 --student-steps 1 --batch-size 4 --synthesis-batch-size 4 --device cpu --image-size"
    size = "20" if teacher.stem == "cut" else "8"
    named = ("--teacher", teacher.stem, "--teacher-weights", str(teacher), "--student", student)
    return main(["train", "dafl", *named, *small.split(), size, "--run-dir", "run", *flags])


@pytest.mark.parametrize("spec", ["narrow", "cut"])
def test_nothing_is_written_for_a_network_that_cannot_run(
    teacher: Path, capsys: pytest.CaptureFixture[str], spec: str
) -> None:
    if spec == "cut":
        assert train(teacher_file(teacher.parent, "cut", 20), "cnn_s") == 2
        words = "--teacher cut: passes no gradient back to its images"
    else:
        assert train(teacher, "narrow") == 2
        words = "--student narrow: cannot take images of 8x8 pixels and 3 channels ("
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dfkd-fast: {words}")
    assert not Path("run").exists()


def test_a_student_with_auxiliary_outputs_is_trained_and_evaluated(teacher: Path) -> None:
    assert train(teacher, "heads") == 0
    model, _ = load_model("heads", weights=Path("run/student.safetensors"))
    assert model(torch.zeros(2, *SHAPE)).shape == (2, 5)
