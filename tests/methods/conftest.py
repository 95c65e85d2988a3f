"""A small teacher and student with lived-in BN statistics, in float64, for every method's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from dfkd_fast.methods.base import Method, MethodConfig, Setup
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet, frozen_twin
from dfkd_fast.runtime import Runtime, make_runtime
from dfkd_fast.text import label_embeddings

INFO = ModelInfo(name="cnn", num_classes=4, image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def lived_in(spec: str, seed: int) -> nn.Module:
    """A network whose BN statistics and affine weights are not those of a fresh one."""
    torch.manual_seed(seed)
    shape = {"num_classes": INFO.num_classes, "image_size": INFO.image_size, "mean": INFO.mean, "std": INFO.std}
    model, _ = load_model(spec, **shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model.double().eval()


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
        student=frozen_twin(student),
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
