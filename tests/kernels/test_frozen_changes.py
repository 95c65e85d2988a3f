"""A frozen network that is loaded into, converted, copied or pickled; networks that were not written to be frozen."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import Untraceable, assert_same, frozen_step, hooked_step, images, trained_looking
from torch import nn

from dfkd_kernels import FrozenConv2d, bn_stat_loss, freeze_teacher


class Network(nn.Module):
    """A layer called by keyword, a layer under two names, and an option that the released CMI networks have."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last = nn.ModuleList([self.conv2, self.bn2])
        self.fc = nn.Linear(8, 10)

    def forward(self, x, return_features=False):
        x = F.relu(self.bn1(self.conv1(input=x)))
        x = F.relu(self.bn2(self.conv2(x)))
        for layer in self.last:
            x = layer(x)
        pooled = x.mean((2, 3))
        return (self.fc(pooled), pooled) if return_features else self.fc(pooled)


class UntraceableTwin(Untraceable):
    """The same, with one BatchNorm under two names: the second is the one that is called."""

    def __init__(self):
        super().__init__()
        self.first_name = nn.BatchNorm2d(3)
        self.second_name = self.first_name

    def forward(self, x):
        return super().forward(self.second_name(x))


@pytest.mark.parametrize("kind", [Network, UntraceableTwin])
def test_layers_under_two_names_and_options_with_defaults(kind):
    network = trained_looking(kind().double())
    teacher = freeze_teacher(network)
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))
    assert len(teacher.targets) == 3
    if kind is Network:
        assert teacher.report == ["bn2: not fused, mean reads its output"]
        assert teacher.class_weights is not None


def test_loading_renews_what_was_derived():
    """The folded BatchNorms and mirrored weights are those of the weights that came last."""
    first, second = (freeze_teacher(trained_looking(Network().double(), seed)) for seed in (0, 1))
    first.load_state_dict(second.state_dict())
    assert_same(frozen_step(first, images()), frozen_step(second, images()), tolerance=0.0)


@pytest.mark.parametrize("kind", [Network, Untraceable])
def test_pickle(kind):
    teacher = freeze_teacher(trained_looking(kind().double()))
    path = "conv1" if kind is Network else "stem"
    expected = teacher(images(), maps=(path,)).maps[path]
    twin = pickle.loads(pickle.dumps(teacher))
    assert_same(frozen_step(twin, images()), frozen_step(teacher, images()), tolerance=0.0)
    assert torch.equal(twin(images(), maps=(path,)).maps[path], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_converting_is_freezing_in_that_dtype(dtype):
    network = trained_looking(Network())
    converted, frozen = freeze_teacher(network).to(dtype), freeze_teacher(network, dtype=dtype)
    x = images(dtype=dtype)
    assert converted.targets[0][1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for ours, expected in zip(frozen_step(converted, x), frozen_step(frozen, x), strict=True):
        assert torch.equal(ours, expected)


def test_mirrored_weights_are_for_the_cpu():
    conv = FrozenConv2d(nn.Conv2d(3, 4, 3))
    assert conv.mirrored is not None
    assert conv.to("meta").mirrored is None


def test_hooks_keep_their_effect_and_are_reported():
    network = trained_looking(Network().double())
    network.bn1.register_forward_hook(lambda module, inputs, output: output * 2)
    network.conv1.register_forward_pre_hook(lambda module, inputs: None)
    teacher = freeze_teacher(network)
    assert "bn1: not fused, its hooks may compute something else than BatchNorm2d" in teacher.report
    assert "conv1: keeps its input for backward, its hooks may compute something else than Conv2d" in teacher.report
    assert_same((teacher(images()).logits,), (network(images()).detach(),))
    assert bn_stat_loss(teacher(images()).moments, teacher.targets).isfinite()


def test_freezing_twice_is_refused():
    with pytest.raises(ValueError, match="model: a FrozenTeacher already"):
        freeze_teacher(freeze_teacher(Network()))
