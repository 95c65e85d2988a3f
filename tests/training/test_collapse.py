"""A collapsed run says so, once, with its figures; a healthy one says nothing. A run without label text says that."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfkd_fast.config.sources import default_config, label_text, load_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.failures import CollapseWatch

INFO = ModelInfo(name="x", num_classes=10, image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)


def watch(said: list[str], answer: Tensor | None = None) -> CollapseWatch:
    """A run of ten epochs, two of warm-up, whose teacher answers with classes `answer`."""

    def logits(view: Tensor) -> Tensor:
        assert view.shape[1:] == (3, 8, 8)
        assert view.abs().max() <= 2.01, "normalised"
        assert answer is not None
        return torch.nn.functional.one_hot(answer, 10).float()

    teacher = SimpleNamespace(info=INFO, logits=logits)
    config = SimpleNamespace(epochs=10, warmup_epochs=2)
    return CollapseWatch(teacher, make_runtime(device="cpu"), config, said.append)  # type: ignore[arg-type]


def test_kd_that_falls_to_nothing() -> None:
    said: list[str] = []
    looks = watch(said)
    for epoch, kd in enumerate((0.2, 1.5, 0.02, 0.004)):
        looks.learned(epoch, {"kd": kd})
    looks.learned(4, {"ce": 0.0})
    assert said == []
    looks.learned(5, {"kd": 0.0012})
    looks.learned(6, {"kd": 0.0})
    assert len(said) == 1
    assert said[0].startswith("warning: collapse: kd has fallen to 0.0012 in epoch 6, from 1.5")


@pytest.mark.parametrize("form", ["bytes", "planes"])
def test_images_of_one_class_only(form: str) -> None:
    said: list[str] = []
    images = torch.full((20, 8, 8, 3), 255, dtype=torch.uint8) if form == "bytes" else torch.ones(20, 3, 8, 8)
    labels = torch.arange(20) % 10
    watch(said, torch.tensor([7] * 19 + [1])).made(4, images, labels)
    watch(said, torch.full((20,), 7)).made(1, images, labels)  # warm-up
    assert said == []
    looks = watch(said, torch.full((20,), 7))
    looks.made(4, images, labels)
    looks.made(8, images, labels)
    looks.made(8, images[:5], labels[:5])
    assert said == [
        "warning: collapse: all 20 newest images of epoch 5 are class 7 to the teacher, of 10 classes; their labels "
        "name 10"
    ]


def test_a_student_with_one_answer() -> None:
    said: list[str] = []
    looks = watch(said)
    looks.evaluated(1, torch.full((50,), 3), 10)  # it has only begun
    looks.evaluated(8, torch.arange(50) % 2, 10)
    assert said == []
    looks.evaluated(8, torch.full((50,), 3), 10)
    assert len(said) == 1
    assert re.search(r"all 50 test images class 3, of 10 classes, in epoch 9", said[0])


@pytest.mark.parametrize(
    ("method", "flags", "has"),
    [
        ("nayer", [], False),
        ("nayer", ["--text", "clip"], True),
        ("nayer", ["--text", "class-index"], True),
        ("muse", ["--text", "class-centre"], False),
        ("muse", ["--text", "vectors.safetensors"], True),
        ("dafl", [], None),
    ],
)
def test_whether_a_method_is_told_what_its_classes_are_called(method: str, flags: list[str], has: bool | None) -> None:
    assert label_text(load_config(default_config(method), flags=flags)) is has
