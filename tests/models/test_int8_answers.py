"""A teacher's answers in int8: close, kept by checkpoints, in student steps alone, and refused where there are none."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import load_run
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import StudentReads
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.int8_answers import Int8Answers, check_int8_runtime
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.int8_teacher import check_int8

SHAPE = {"num_classes": 10, "image_size": 32, "mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}
TINY = [
    *("train", "nayer", "--preset", "digits", "--threads", "1", "--precision", "fp32", "--epochs", "3"),
    *("--warmup-epochs", "1", "--warmup-rounds", "1", "--rounds", "1", "--synthesis-steps", "2"),
    *("--synthesis-batch-size", "20", "--student-steps", "3", "--batch-size", "16", "--generator-width", "16"),
    *("--teacher", "cnn", "--teacher-recipe.epochs", "1", "--eval.every", "0", "--teacher-precision", "int8"),
]


@pytest.fixture
def library() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")


def views(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def network() -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_model("resnet8", **SHAPE)
    model.train()(views(64))
    return model.eval()


def frozen(precision: str, model: nn.Module) -> FrozenNet:
    _, info = load_model("resnet8", **SHAPE)
    return FrozenNet(model, info, make_runtime(device="cpu", threads=1), precision=precision)


@pytest.mark.usefixtures("library")
def test_answers_are_close_and_all_else_is_float() -> None:
    model = network()
    exact, ours = frozen("same", model), frozen("int8", model)
    view = views(24).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours.answer(view).logits, exact.answer(view).logits)  # not yet calibrated
    assert ours.int8 is not None
    ours.int8.calibrate([views(40), views(16)])
    found, expected = ours.answer(view).logits, exact.answer(view).logits
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert torch.equal(ours.answer(view).logits, found)
    view.requires_grad_()
    for one, other in zip((ours(view), ours(view).moments), (exact(view), exact(view).moments), strict=True):
        logits, wanted = (one.logits, other.logits) if hasattr(one, "logits") else (one[0].mean(), other[0].mean())
        assert torch.equal(logits, wanted)
        (gradient,) = torch.autograd.grad(logits.sum(), view)
        (reference,) = torch.autograd.grad(wanted.sum(), view)
        assert torch.equal(gradient, reference)


@pytest.mark.usefixtures("library")
def test_a_checkpoint_keeps_them() -> None:
    model = network()
    first, second = frozen("int8", model).int8, frozen("int8", model).int8
    assert first is not None
    assert second is not None
    assert first.tensors() == {}
    first.calibrate([views(40)])
    first.agreement = 0.75
    second.restore(first.tensors())
    assert second.agreement == 0.75
    assert torch.equal(first(views(8)), second(views(8)))


@pytest.mark.usefixtures("library")
def test_a_network_that_cannot_be_exported_is_named() -> None:
    class Sorted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.svdvals(images.mean((2, 3)))

    _, info = load_model("resnet8", **SHAPE)
    with pytest.raises(
        UserError, match=r"^--teacher-precision int8: .* cannot be exported to ONNX \(.*\); choose same$"
    ):
        Int8Answers(Sorted(), info, make_runtime(device="cpu"))


def test_runs_that_cannot_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make_runtime(device="cpu")
    for other, reason in (
        (replace(runtime, device=torch.device("cuda", 0)), r"for CPUs only, and the device is cuda:0; choose same"),
        (replace(runtime, compilation="default"), r"does not go with --compile default"),
        (replace(runtime, world_size=2), r"for one process, .* not 2; choose same"),
    ):
        with pytest.raises(UserError, match=rf"^--teacher-precision int8: {reason}"):
            check_int8_runtime(other)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime and onnx \(.*\); pip install 'dfkd-fast\[int8\]'$"):
        check_int8_runtime(runtime)


LOGITS = StudentReads()


@pytest.mark.parametrize(
    ("method", "is_led", "is_cached", "reason"),
    [
        (("alternating", LOGITS, 1), False, False, ""),
        (("alternating", LOGITS, 1), False, True, "no step asks the teacher"),
        (("alternating", LOGITS, 1), True, False, "learns from more than logits of fixed views"),
        (("alternating", StudentReads(teacher_features=True), 1), False, False, "learns from more than logits"),
        (("alternating", StudentReads(teacher=("layer1",)), 1), False, False, "learns from more than logits"),
        (("alternating", LOGITS, 2), False, False, "for images of one size, and this method has 2"),
        (("stepwise", LOGITS, 1), False, False, "keeps no images to calibrate it by"),
    ],
)
def test_students_that_cannot_have_them(method: Any, is_led: bool, is_cached: bool, reason: str) -> None:
    loop, reads, sizes = method
    stated: Any = SimpleNamespace(loop=loop, student_reads=lambda: reads, pools=lambda: [None] * sizes)
    teacher: Any = SimpleNamespace(int8=object(), window=SimpleNamespace(is_led=is_led))
    with pytest.raises(UserError, match=rf"^--teacher-precision int8: .*{reason}") if reason else nullcontext():
        check_int8(stated, teacher, is_cached=is_cached)
    teacher.int8 = None
    check_int8(stated, teacher, is_cached=is_cached)


@pytest.mark.usefixtures("library")
def test_a_resumed_run_answers_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated in epoch 2, resumed in epoch 3 with a larger pool: the same student; figures are shown and kept."""
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*TINY, "--run-dir", str(whole)]) == 0
    assert main([*TINY, "--stop-after-epoch", "2", "--run-dir", str(parts)]) == 0
    assert main(["train", "--resume", str(parts)]) == 0
    students = [load_file(folder / "student.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    record = json.loads((whole / "run.json").read_text())
    assert 0 <= record["teacher_int8_agreement"] <= 1
    assert 0 <= record["teacher_int8_top1"] <= 1
    assert "teacher in int8: agrees with itself in fp32 on" in capsys.readouterr().out
    assert load_run(whole).teacher_precision == "int8"
