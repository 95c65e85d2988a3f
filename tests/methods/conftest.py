"""A small teacher and student with lived-in BN statistics, in float64, for every method's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny, write_teacher
from torch import nn
from toy_networks import INFO, lived_in

from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.methods.base import Method, MethodConfig, Setup
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.text.label_embeddings import label_embeddings
from dfkd_fast.training.train import train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp64")


@pytest.fixture
def teacher() -> nn.Module:
    """The teacher as an ordinary network, for independent versions of a loss."""
    return lived_in("cnn", 1)


@pytest.fixture
def student() -> nn.Module:
    return lived_in("cnn_s", 5)


@pytest.fixture
def setup(teacher: nn.Module, student: nn.Module, runtime: Runtime) -> Setup:
    return Setup(
        teacher=FrozenNet(teacher, INFO, runtime),
        student=frozen_alias(student),
        info=INFO,
        label_embeddings=label_embeddings("orthogonal", INFO.num_classes, dim=8),
    )


@pytest.fixture
def make_method(setup: Setup, runtime: Runtime) -> Callable[[type[Method], MethodConfig], Method]:
    """Build a method on the toy networks, seeded."""

    def make(cls: type[Method], config: MethodConfig) -> Method:
        torch.manual_seed(3)
        return runtime.place(cls(config, setup)).train()  # type: ignore[return-value]

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that was stopped after epoch 2 of 3, the same run to its end, and their teacher."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny("nayer", write_teacher(folder / "teacher.safetensors"), folder / "stopped")
    train(replace(config, stop_after_epoch=2))
    train(replace(config, run_dir=folder / "whole"))
    return folder


@pytest.fixture
def stopped(runs: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(runs / "stopped", tmp_path / "run"))
