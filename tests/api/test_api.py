"""The Python interface: the page as it stands, modules as networks, methods of others, and what is refused."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dfkd_fast
from dfkd_fast import catalog
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config
from dfkd_fast.errors import UserError
from dfkd_fast.models import given
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.given import give

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """What is registered here is forgotten again."""
    before = dict(catalog.METHODS), dict(catalog.FACTS)
    yield
    for table, old in zip((catalog.METHODS, catalog.FACTS), before, strict=True):
        table.clear()
        table.update(old)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's snippets, run in their order in a folder of their own, have left."""
    folder = tmp_path_factory.mktemp("api")
    network, method, notebook = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1:]
    (folder / "pixels.py").write_text(method)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        names: dict[str, Any] = {"torch": torch, "__name__": "notebook"}
        torch.manual_seed(0)
        exec(compile(network.partition("result = ")[0], "api.md", "exec"), names)
        exec(compile(notebook, "api.md", "exec"), names)
        names["network"] = network
        own = [line for line in f"{network}{notebook}".splitlines() if line.strip()]
        assert len(own) < 20, "a network of one's own and somebody else's method, from a notebook"
        yield names
    sys.modules.pop("pixels")


def test_the_page_runs(page: dict[str, Any]) -> None:
    result = page["result"]
    assert isinstance(result, dfkd_fast.Result)
    assert (result.record["method"], result.record["complete"], result.top1) == ("pixels", True, None)
    assert page["logits"].shape == (4, 2)
    student = result.student
    assert not any(part.training for part in student.modules())
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(student(images), student.network((images - 0.5) / 0.25))
    assert student.info.shape == (1, 16, 16)


@pytest.mark.nightly
def test_the_pages_first_run(page: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(page["network"], "api.md", "exec"), names)
    assert (names["result"].record["method"], names["result"].record["complete"]) == ("nayer", True)
    assert names["student"](torch.rand(4, 1, 16, 16)).shape == (4, 2)


def test_a_module_that_was_given_stays_as_it_is(page: dict[str, Any]) -> None:
    """A copy is used, of the weights that it had, whatever becomes of the module later."""
    net = page["Net"](8)
    spec = give(net)
    model, info = load_model(spec, mean=(0.5,), std=(0.25,), image_size=16)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in model.state_dict().items())
    assert (info.num_classes, info.in_chans) == (2, 1)
    with torch.no_grad():
        net[0].weight.zero_()
    assert give(net) != spec
    again, _ = load_model(spec, mean=(0.5,), std=(0.25,), image_size=16)
    assert torch.equal(again.get_submodule("0").weight, model.get_submodule("0").weight)
    other = type("Net", (page["Net"],), {"__module__": "other"})(8)
    other.load_state_dict(model.state_dict())
    assert give(other) not in (spec, give(net))


def test_a_run_goes_on_with_the_same_modules_alone(page: dict[str, Any]) -> None:
    torch.manual_seed(1)
    net, other = page["Net"](8), page["Net"](8)
    settings = {"method": page["Pixels"], **page["shape"], **page["quick"]}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stopped = dfkd_fast.distill(page["teacher"], net, run_dir=Path("part"), stop_after_epoch=2, **settings)
    assert not stopped.record["complete"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    learned = stopped.student.network.get_submodule("0").weight
    assert not torch.equal(learned, before["0.weight"])
    with pytest.raises(UserError, match=r"^--student given:Net@\w+: the run in part has given:Net@\w+; [^\n]*$"):
        dfkd_fast.distill(page["teacher"], other, run_dir="part", resume=True, **settings)
    with pytest.raises(UserError, match=r"^--run-dir part: holds a run already"):
        dfkd_fast.distill(page["teacher"], net, run_dir="part", **settings)
    again = dfkd_fast.distill(page["teacher"], net, run_dir="part", resume=True, **settings)
    assert again.record["complete"]
    assert not torch.equal(again.student.network.get_submodule("0").weight, learned)


def test_a_students_file_in_another_process(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """There its network is given again, or its code is named."""
    file, images = Path("runs/pixels/student.safetensors"), torch.rand(2, 1, 16, 16)
    expected = page["result"].student(images)
    monkeypatch.setattr(given, "_GIVEN", {})  # as another process knows none
    with pytest.raises(UserError, match=r"^load_student given:Net@\w+: is a module that was given in Python"):
        dfkd_fast.load_student(file)
    loaded = dfkd_fast.load_student(file, network=page["Net"](8))
    assert torch.equal(loaded(images), expected)
    said = dfkd_fast.export(loaded, "out/net.pt2", to="torch-export")
    assert torch.allclose(torch.export.load("out/net.pt2").module()(images), loaded(images), atol=1e-6)
    assert said["input"]["shape"] == ["batch", 1, 16, 16]


def test_evaluation_of_modules_and_students() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    found = dfkd_fast.evaluate(net, "digits", mean=[0.3] * 3, std=[0.4] * 3, image_size=32, device="cpu")
    assert found.top1 == (found.predictions == found.predictions.new_tensor(_digits())).double().mean().item()
    with pytest.raises(UserError, match="image_size, mean, std not known"):
        dfkd_fast.evaluate(net, "digits")


def _digits() -> list[int]:
    from dfkd_fast.data.splits import load_split

    return load_split("digits", "test").labels.tolist()


def test_names_come_with_torch_only_when_they_are_asked_for() -> None:
    code = """
import sys, dfkd_fast
assert set(dfkd_fast.__all__) <= set(dir(dfkd_fast))
assert issubclass(dfkd_fast.UserError, ValueError)
assert "torch" not in sys.modules
try:
    dfkd_fast.distil
except AttributeError:
    pass
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted({*dfkd_fast.__all__} - {"__version__"}))
def test_every_name_is_documented(name: str) -> None:
    found = getattr(dfkd_fast, name)
    assert inspect.getdoc(found)
    assert re.search(rf"`{name}\b", PAGE)
    if inspect.isfunction(found):
        assert all(each.annotation is not each.empty for each in inspect.signature(found).parameters.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--method.epochs 0: choose"),
        ({"epoch": 3}, "--epoch: unknown flag; did you mean"),
        ({"method": "nayr"}, "train nayr: did you mean nayer?"),
        ({"device": torch.device("cpu")}, "device: is a device; give a number, text, a path, or several of them"),
        ({"num_classes": 3}, "--teacher given:"),
        ({"resume": True}, "--resume new: no run there"),
        ({"method": nn.Linear}, "register_method linear: .* is no class below dfkd_fast.Method"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    shape = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 16, "run_dir": "new", "method": "dafl"}
    with pytest.raises(UserError, match=f"^{message}"):
        dfkd_fast.distill(net, net, **shape | settings)
    assert [*tmp_path.iterdir()] == []


def test_registration_is_refused(page: dict[str, Any]) -> None:
    pixels = page["Pixels"]
    dfkd_fast.register_method("pixels", pixels)  # again
    for name, method, why in (
        ("Pixels", pixels, "choose a name of small letters"),
        ("nayer", pixels, "that name is taken by dfkd_fast"),
        ("dots", pixels, "is registered as pixels already"),
        ("dots", type("Dots", (dfkd_fast.Method,), {"__module__": "pixels"}), "stands within something else"),
    ):
        with pytest.raises(UserError, match=why):
            dfkd_fast.register_method(name, method)


def test_a_distributions_methods_are_found(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry points, on the command line, too; ours keep their names."""
    points = [metadata.EntryPoint(name, "pixels:Pixels", catalog.ENTRY_POINTS) for name in ("dots", "nayer")]
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: points)
    assert catalog.installed_methods() == {"dots": "pixels:Pixels"}
    fresh = importlib.util.module_from_spec(catalog.__spec__)  # type: ignore[arg-type]
    catalog.__spec__.loader.exec_module(fresh)  # type: ignore[union-attr]
    assert fresh.METHODS["dots"] == "pixels:Pixels"
    assert fresh.FACTS["dots"].venue == "installed"
    assert type(default_config("pixels").method).__name__ == "PixelsConfig"
    with pytest.raises(SystemExit):
        main(["train", "pixels", "--help"])
