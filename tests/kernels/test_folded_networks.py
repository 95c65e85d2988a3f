"""freeze_teacher(moments=False): BatchNorm in the convolutions' weights, the same answers up to rounding."""

import copy
import pickle

import pytest
import torch
from frozen_networks import NETWORKS, Untraceable, images, trained_looking
from operator_contract import needs_cpu
from test_frozen_activations import FUSED, Block
from torch import nn

from dfkd_kernels import freeze_teacher
from dfkd_kernels.freeze.fold import FoldedConv2d

pytestmark = needs_cpu


def answers(network, x):
    with torch.no_grad():
        out = network(x)
    return out.logits if hasattr(out, "logits") else out


def error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


# (BatchNorms that are left): those in front of a convolution, or behind one that others read
@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("mobilenet_v2", 0), ("cifar:wrn16_1", 7)])
def test_answers_are_the_originals(name, left):
    network = trained_looking(NETWORKS[name]())
    exact = answers(copy.deepcopy(network).double(), images(16))
    teacher = freeze_teacher(network, moments=False)
    assert sum("not folded" in line for line in teacher.report) == left
    assert any(isinstance(module, FoldedConv2d) for module in teacher.modules())
    x = images(16, torch.float32)
    assert error(answers(teacher, x), exact) < 1e-5
    assert teacher.targets == [] == teacher(x).moments
    assert teacher.norm_inputs == ()
    # gradients reach the images, by the ordinary operators
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(teacher(x).logits.square().sum(), x)
    (expected,) = torch.autograd.grad(network.requires_grad_(False)(x).square().sum(), x)
    assert error(gradient, expected.double()) < 1e-4
    # bfloat16 is no further off than the original in it
    coarse = images(16, torch.bfloat16)
    theirs = error(answers(copy.deepcopy(network).bfloat16(), coarse), exact)
    assert error(answers(freeze_teacher(network, dtype=torch.bfloat16, moments=False), coarse), exact) <= 1.1 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUSED)
def test_activations_and_sums_join_the_convolution(name, dtype):
    network = trained_looking(Block(FUSED[name]))
    exact = answers(copy.deepcopy(network).double(), images(3))
    teacher = freeze_teacher(network, dtype=dtype, moments=False)
    assert teacher.report == []
    assert error(answers(teacher, images(3, dtype)), exact) < (1e-6 if dtype == torch.float32 else 2e-2)


def test_it_follows_copies_and_moves():
    network = trained_looking(NETWORKS["cifar:wrn16_1"]())
    teacher, x = freeze_teacher(network, moments=False), images(4, torch.float32)
    expected = answers(teacher, x)
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert torch.equal(answers(other, x), expected)
    maps = teacher(x, maps=("block1",)).maps
    assert maps["block1"].shape == freeze_teacher(network)(x, maps=("block1",)).maps["block1"].shape
    assert answers(teacher.to(torch.bfloat16), x.bfloat16()).dtype == torch.bfloat16


def test_what_cannot_be_folded():
    with pytest.raises(ValueError, match="moments False: share=True keeps the model's own tensors"):
        freeze_teacher(NETWORKS["cifar:wrn16_1"](), share=True, moments=False)
    network = trained_looking(Untraceable())
    teacher, x = freeze_teacher(network, moments=False), images(2, torch.float32)
    assert any("torch.fx cannot trace it" in line for line in teacher.report)
    assert teacher(x).moments == [] == teacher.targets
    torch.testing.assert_close(answers(teacher, x), answers(network, x))
    shared = nn.Conv2d(3, 3, 3, padding=1)
    twice = nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 5))
    teacher = freeze_teacher(trained_looking(twice), moments=False)
    assert sum("others read or run" in line for line in teacher.report) == 2
    torch.testing.assert_close(answers(teacher, x), answers(twice, x))
