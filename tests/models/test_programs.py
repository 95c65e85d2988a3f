"""Networks that are files by themselves: exported programs, TorchScript, folders of transformers."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd_fast.config.own_networks import folder_name, resolved, unplaced
from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.programs import ABOUT_FILE
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.checkpoints.sources import code_of
from dfkd_fast.training.judge import check_teacher

NORMAL: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)}
ANY_BATCH = ({0: torch.export.Dim.AUTO},)


class Net(nn.Module):
    """One channel, two classes; a grouped and a strided convolution, a sum, BatchNorm with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.wide = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.fc(nn.functional.relu(self.norm(self.wide(x)) + x).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    made = Net().eval()
    for norm in (made.stem[1], made.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return made


@pytest.fixture(scope="module")
def files(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network as `net.pt2`, `net.pt` and, for batches of two alone, `two.pt2`."""
    folder = tmp_path_factory.mktemp("programs")
    example = torch.randn(2, 1, 12, 8)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=ANY_BATCH), folder / "net.pt2")
    torch.export.save(torch.export.export(net, (example,)), folder / "two.pt2")
    training = torch.export.export(Net().train(), (example,), dynamic_shapes=ANY_BATCH)
    torch.export.save(training, folder / "training.pt2")
    torch.jit.save(torch.jit.script(net), folder / "net.pt")
    torch.save(net.state_dict(), folder / "weights.pt")
    return folder


def gradients(answer: Any, view: Tensor) -> Tensor:
    """Of the sum of the logits' squares."""
    view = view.clone().requires_grad_()
    answer(view).square().sum().backward()
    assert view.grad is not None
    return view.grad


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
def test_a_program_is_its_network(net: Net, files: Path, name: str) -> None:
    stated = NORMAL | ({} if name == "net.pt2" else {"image_size": (12, 8)})
    model, info = load_model(str(files / name), **stated, pretrained=True)
    assert (info.shape, info.num_classes) == ((1, 12, 8), 2)
    frozen = FrozenNet(model, info, make_runtime(device="cpu", precision="fp32", threads=1))
    view = torch.randn(5, 1, 12, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(frozen(view).logits, net(view))
    torch.testing.assert_close(gradients(lambda x: frozen(x).logits, view), gradients(net, view))
    if name == "net.pt":
        assert not frozen(view).moments
        return
    first = net.stem[0](view)
    second = net.wide(net.stem(view))
    for found, maps in zip(frozen(view).moments, (first, second), strict=True):
        torch.testing.assert_close(found.mean(), maps.mean((0, 2, 3)))
        torch.testing.assert_close(found.var(), maps.var((0, 2, 3), correction=0))
    torch.testing.assert_close(frozen.targets[1][1], net.norm.running_var)
    torch.testing.assert_close(frozen.class_weights, net.fc.weight.detach())


def message_of(spec: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(spec), **NORMAL, image_size=(12, 8), pretrained=True, **more)
    return str(caught.value)


def test_programs_that_cannot_be_teachers(files: Path, tmp_path: Path) -> None:
    assert "two.pt2: was exported for batches of 2; export it for any" in message_of(files / "two.pt2")
    assert "was exported in training mode; call .eval()" in message_of(files / "training.pt2")
    assert "is no TorchScript; name its network, and give this file by --teacher-weights" in message_of(
        files / "weights.pt"
    )
    assert message_of(files / "none.pt2").endswith("none.pt2: no such file")
    (tmp_path / "damaged.pt2").write_bytes(b"PK" + bytes(100))
    assert "cannot be read as a program of torch.export" in message_of(tmp_path / "damaged.pt2")
    assert "logits for 3 classes" in message_of(files / "net.pt2", num_classes=3)


def test_a_script_has_no_statistics_to_match(files: Path) -> None:
    spec = str(files / "net.pt")
    model, info = load_model(spec, **NORMAL, image_size=(12, 8), pretrained=True)
    config = default_config("nayer")
    with pytest.raises(UserError, match=r"TorchScript hands out none of its layers' input.*--method.bn-weight 0"):
        check_teacher(model, info, load_method("nayer"), config, None)


def test_a_student_starts_untrained(files: Path) -> None:
    spec = str(files / "net.pt2")
    config = replace(default_config("nayer"), teacher=spec, student=spec)
    with pytest.raises(UserError, match=r"^--student .*net.pt2: is a finished program, which cannot start untrained"):
        config.check()


def test_a_program_is_known_by_its_content(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    spec = resolved("net.pt2", (), "--teacher")
    assert (spec, unplaced(spec), folder_name(spec)) == (str(files / "net.pt2"), "net.pt2", "net")
    sources = code_of(replace(default_config("nayer"), teacher=spec, student="cnn"))
    assert [(role, list(found)) for role, found in sources.items()] == [("teacher", ["net.pt2"])]


def test_what_export_wrote_is_read_back(net: Net, tmp_path: Path) -> None:
    about = {"input": {"shape": ["batch", 1, 12, 8], "resized_with": "bicubic"}, "class_names": ["ill", "well"]}
    program = torch.export.export(net, (torch.randn(2, 1, 12, 8),), dynamic_shapes=ANY_BATCH)
    torch.export.save(program, tmp_path / "a.pt2", extra_files={ABOUT_FILE: json.dumps(about)})
    torch.jit.save(torch.jit.script(net), str(tmp_path / "a.pt"), _extra_files={ABOUT_FILE: json.dumps(about)})
    for name in ("a.pt2", "a.pt"):
        info = load_model(str(tmp_path / name), pretrained=True)[1]
        assert (info.shape, info.mean, info.std) == ((1, 12, 8), (0.0,), (1.0,))
        assert (info.class_names, info.interpolation) == (("ill", "well"), "bicubic")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_a_folder_of_transformers(tmp_path: Path) -> None:
    ensure_importable()
    import transformers

    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "ill", 1: "well"},
        label2id={"ill": 0, "well": 1},
    )
    torch.manual_seed(0)
    own = transformers.ResNetForImageClassification(config).eval()
    own.save_pretrained(tmp_path / "net")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.4],
        "image_std": [0.3],
        "size": {"height": 96, "width": 64},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = f"hf:{tmp_path / 'net'}"
    model, info = load_model(spec, pretrained=True)
    assert (info.shape, info.mean, info.std, info.interpolation) == ((1, 96, 64), (0.4,), (0.3,), "bicubic")
    assert info.class_names == ("ill", "well")
    frozen = FrozenNet(model, info, make_runtime(device="cpu", precision="fp32", threads=1))
    view = torch.randn(2, 1, 96, 64)
    torch.testing.assert_close(frozen(view).logits, own(view).logits, rtol=1e-4, atol=1e-5)
    assert len(frozen.targets) == len([part for part in own.modules() if isinstance(part, nn.BatchNorm2d)])
    student, fits = load_model(spec, num_classes=5, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert fits.shape == (3, 32, 32)
    assert student(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match=r"no config.json there"):
        load_model(f"hf:{tmp_path}", pretrained=True)
    with pytest.raises(UserError, match=r"know 2 classes, not 5"):
        load_model(spec, num_classes=5, pretrained=True)
