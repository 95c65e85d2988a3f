"""The contract of all methods in the catalogue. A listed method is tested; it needs a `digits` preset.

Each method runs as its digits preset says, but tiny: 32-pixel images, the demo's networks, a teacher that has seen
nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Rounds
from safetensors.torch import load_file
from sync_free import sync_free
from tiny_runs import SHAPE, tiny, write_teacher
from torch import Tensor, nn

from dfkd_fast.catalog import METHODS, presets
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import LossTerms, Method, MethodConfig, SynthBatch, weighted_sum
from dfkd_fast.methods.inner import Variant, inners
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.assemble import load_method, make_method, make_student
from dfkd_fast.training.evaluate import deployed
from dfkd_fast.training.inner import InnerLoop, OnStep, ignore
from dfkd_fast.training.judge import check_teacher
from dfkd_fast.training.pools import make_pools
from dfkd_fast.training.real_images.collected import load_collected, rank_part
from dfkd_fast.training.student import make_trainer
from dfkd_fast.training.train import train

ROOT = Path(__file__).parent.parent.parent
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "cnn.safetensors")


class Assembled:
    """A method on its networks with pools and trainer, as a run puts them together."""

    def __init__(self, config: TrainConfig[Any], folder: Path) -> None:
        model, info = load_model(config.teacher, **SHAPE, weights=config.teacher_weights)
        self.runtime = make_runtime(device="cpu", precision="fp32")
        self.teacher = FrozenNet(model, info, self.runtime)
        self.student = make_student(config, info, self.runtime)
        cls = load_method(config.method_name)
        real = rank_part(load_collected(config, cls, info), info, self.runtime)
        self.method = make_method(config, cls, self.teacher, self.student, self.runtime, real).train()
        self.pool, _ = make_pools(config.pool, folder, method=self.method, runtime=self.runtime)
        self.trainer = make_trainer(
            self.student, method=self.method, teacher=self.teacher, pool=self.pool, runtime=self.runtime
        )
        self.rounds = Rounds(self.method, self.runtime)

    def made(self, epoch: int, on_step: OnStep = ignore) -> list[SynthBatch]:
        """What the first round of each image size makes; in epoch 0 where `epoch` has no round."""
        self.method.train()
        found: dict[tuple[int, ...], SynthBatch] = {}
        plans, epoch, index = self.method.pools(), epoch if self.method.rounds(epoch) else 0, 0
        while len(found) < len(plans):
            batch = self.rounds.round(epoch, index, on_step)
            found.setdefault(tuple(batch.images.shape[-2:]), batch)
            index += 1
        return [found[plan.image_size] for plan in plans]

    def round(self, epoch: int, on_step: OnStep = ignore) -> None:
        """A round of each image size, into its pool if it has one."""
        for batch in self.made(epoch, on_step):
            if self.method.loop == "alternating":
                self.trainer.store(batch)


@pytest.fixture
def run(name: str, teacher_file: Path, tmp_path: Path) -> Assembled:
    assembled = Assembled(tiny(name, teacher_file, tmp_path / "run"), tmp_path / "pool")
    yield assembled
    assembled.pool.close()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@every_method
def test_declares_itself(name: str) -> None:
    """A class and a config as the catalogue says, a page, and a line of explanation for every setting."""
    cls = load_method(name)
    config_class = type(default_config(name).method)
    assert issubclass(cls, Method)
    assert issubclass(config_class, MethodConfig)
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|\w.* \d{4}", cls.paper)
    assert cls.loop in ("alternating", "stepwise")
    assert config_class.__dataclass_params__.frozen
    assert all(item.kw_only for item in fields(config_class))
    module = importlib.import_module(cls.__module__)
    assert cls.paper in (module.__doc__ or "")
    body = ast.parse(inspect.getsource(config_class)).body[0].body
    for item, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{name}: {ast.unparse(item)} has no docstring"
    file = str(Path(module.__file__).relative_to(ROOT))
    assert any(file in page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md")), f"no page about {file}"


@every_method
def test_presets_load(name: str) -> None:
    assert "digits" in presets(name)
    for preset in presets(name):
        config = load_config(default_config(name), preset=preset)
        config.check()
        assert config.method_name == name


def test_importing_methods_imports_no_data_reader() -> None:
    modules = sorted({target.partition(":")[0] for target in METHODS.values()})
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
assert not {{"dfkd_fast.data.splits", "sklearn", "PIL"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@every_method
def test_a_round(run: Assembled, name: str) -> None:
    """Images in [0, 1] with labels, finite weighted terms; frozen networks and every address stay as they are."""
    before, teacher = state(run.student), state(run.teacher.net)
    frozen = [*run.teacher.net.parameters(), *run.student.parameters()]
    method, plans = run.method, run.method.pools()
    addresses: Sequence[int] = []
    for epoch in (0, 1, 2):
        seen: list[LossTerms] = []
        batches = run.made(epoch, lambda terms, _images, seen=seen: seen.append(terms))
        learns = any(True for _ in inners(method))  # in synthesis; KD only reads images
        assert len(seen) == method.config.synthesis_steps * len(plans) * learns
        assert all(term.dim() == 0 and term.isfinite() for terms in seen for term in terms.values())
        for terms in seen[method.config.synthesis_steps - 1 :: method.config.synthesis_steps]:
            weighted_sum(terms, method.config)
        for plan, batch in zip(plans, batches, strict=True):
            count = plan.synthesis_batch_size
            assert batch.images.shape == (count, method.info.in_chans, *plan.image_size)
            assert 0 <= batch.images.min() < batch.images.max() <= 1
            assert batch.labels.shape == (count,)
            assert 0 <= batch.labels.min() <= batch.labels.max() < method.info.num_classes
        now = [value.data_ptr() for value in (*method.parameters(), *method.buffers())]
        assert addresses in ([], now), "something was rebound"
        addresses = now
    moved = dict(run.student.named_buffers()) if getattr(method.config, "student_mode", "eval") == "released" else {}
    assert changed(before, run.student) <= moved.keys()
    assert not changed(teacher, run.teacher.net)
    assert all(value.grad is None for value in frozen)


@every_method
def test_student_steps(run: Assembled, name: str) -> None:
    """The student and the method's head learn; nothing else of the method does, and no frozen network."""
    run.round(0)
    side = run.method.student_head()
    learning = set() if side is None else {value.data_ptr() for value in side.parameters()}
    before, others = state(run.student), state(run.method)
    for parameter in run.method.parameters():
        parameter.grad = None
    terms: list[dict[str, Tensor]] = []
    config = run.method.config
    run.trainer.epoch(config.warmup_epochs, config.steps_per_epoch, lambda found, _images: terms.append(found))
    assert len(terms) == config.steps_per_epoch
    assert {"kd", "align"} & terms[0].keys()
    assert all(term.isfinite() for found in terms for term in found.values())
    learned = {name for name, value in run.student.named_parameters() if value.grad is not None}
    unread = run.student.state_dict().keys() - learned - {name for name, _ in run.student.named_buffers()}
    assert unread <= ({"fc.weight", "fc.bias"} if "align" in terms[0] else set()), (
        "who shares a classifier needs no own"
    )
    assert learned <= changed(before, run.student)
    values = dict(run.method.named_parameters())
    for name in changed(others, run.method) & values.keys():
        assert values[name].data_ptr() in learning, f"{name} learned from a student step"
    assert all(value.grad is None for value in values.values() if value.data_ptr() not in learning)
    assert all(value.grad is None for value in run.teacher.net.parameters())


@every_method
def test_steps_never_wait_for_the_device(run: Assembled, name: str) -> None:
    """Synthesis in a warm-up and in a later epoch, every step; a student step. Two of each: the first may set up."""
    run.round(0)
    checked = [steps_checked(engine) for engine in run.rounds.engines]
    for epoch in (0, 2):
        for _ in range(2):
            run.made(epoch)
    assert all(checked)
    inputs = list(run.trainer.inputs(2))
    run.student.train()
    run.trainer.step(*inputs[0])
    with sync_free():
        run.trainer.step(*inputs[1])


def steps_checked(engine: InnerLoop) -> set[Hashable]:
    """Take the engine's steps `sync_free`, but for the first of each variant; returns the variants so checked."""
    known: set[Hashable] = set()
    checked: set[Hashable] = set()
    step = engine.run_step

    def run_step(key: Hashable, variant: Variant) -> LossTerms:
        if key in known:
            checked.add(key)
        with sync_free() if key in known else nullcontext():
            known.add(key)
            return step(key, variant)

    engine.run_step = run_step
    return checked


@every_method
def test_deployed_network_classifies(run: Assembled, name: str) -> None:
    network = deployed(run.method, run.student).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@every_method
def test_runs_and_resumes_bit_for_bit(name: str, teacher_file: Path, tmp_path: Path) -> None:
    """Stopped after the warm-up and one student epoch, and taken up again: the same student and pool as in one go."""
    whole = train(tiny(name, teacher_file, tmp_path / "whole"))
    pieces = tiny(name, teacher_file, tmp_path / "pieces")
    train(replace(pieces, stop_after_epoch=2))
    train(pieces, resume=True)
    expected = load_file(whole / "student.safetensors")
    found = load_file(tmp_path / "pieces" / "student.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    for file in sorted((whole / "pool").rglob("*.bin")):
        assert file.read_bytes() == (tmp_path / "pieces" / file.relative_to(whole)).read_bytes()


@every_method
def test_teacher_without_batchnorm(name: str) -> None:
    cls, config = load_method(name), load_config(default_config(name), preset="digits")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    info = ModelInfo(name="plain", **SHAPE)
    if not cls.needs.batchnorm:
        check_teacher(network, info, cls, config, None)
        return
    message = f"--teacher {config.teacher}: {name} matches BatchNorm statistics and this network has none; "
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_teacher(network, info, cls, config, None)


@every_method
def test_wrong_values_are_named(name: str) -> None:
    """Of each kind of setting that the method adds, one that cannot be; a batch without statistics; a typing error."""
    added = {item.name: item for item in fields(default_config(name).method)}
    for kind, wrong in (("int", "x"), ("float", "x"), ("bool", "x")):
        key = next((key for key, item in reversed(added.items()) if item.type == kind), None)
        flag = f"--method.{str(key).replace('_', '-')}"
        if key is not None:
            with pytest.raises(UserError, match=rf"^{flag} {wrong}: "):
                load_config(default_config(name), flags=[flag, wrong])
    weight = next(key for key in reversed(added) if key.endswith("_weight")).replace("_", "-")
    for flags, message in (
        ([f"--method.{weight}", "nan"], rf"^--method\.{weight} nan: choose a finite number$"),
        (["--synthesis-batch-size", "1"], r"^--method\.synthesis-batch-size 1: choose 2 or more$"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(default_config(name), preset="digits", flags=flags).check()
    with pytest.raises(UserError, match=rf"^--method\.{weight}s: unknown flag; did you mean --method\.{weight}\?"):
        load_config(default_config(name), flags=[f"--method.{weight}s", "1"])
