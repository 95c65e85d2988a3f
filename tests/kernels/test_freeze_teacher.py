"""freeze_teacher against the original network under forward hooks: outputs, loss and input gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import (
    EXPECTED,
    NETWORKS,
    Untraceable,
    assert_same,
    frozen_step,
    hooked_step,
    images,
    trained_looking,
)
from operator_contract import DEVICE, check_capturable, needs_gpu, running_on
from torch import nn

from dfkd_kernels import FrozenConv2d, StatBatchNorm2d, bn_stat_loss, freeze_teacher


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_original(name, fuse):
    network = trained_looking(NETWORKS[name]().double())
    teacher = freeze_teacher(network, fuse=fuse)
    x = images()
    assert_same(frozen_step(teacher, x), hooked_step(network, x))
    logits, features, moments = teacher(x, moments=False)
    assert_same((logits,), (network(x).detach(),))
    assert moments == []
    alone, shape, has_class_weights = EXPECTED[name]
    assert len([line for line in teacher.report if "not fused" in line]) == (alone if fuse else 0)
    assert features.shape == (2, *shape)
    assert (teacher.class_weights is not None) == has_class_weights
    if has_class_weights:  # then the logits are the pooled features times these weights, which is what a CAM needs
        pooled = features.mean((2, 3)) @ teacher.class_weights.t()
        assert torch.allclose(logits - pooled, (logits - pooled).mean(0).expand_as(logits), atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_bfloat16_is_no_further_from_float64_than_the_original(name, backend):
    network = trained_looking(NETWORKS[name]())
    exact = hooked_step(copy.deepcopy(network).double(), images(8))
    original = hooked_step(copy.deepcopy(network).to(torch.bfloat16), images(8, torch.bfloat16))
    with running_on(backend, "bn_act_moments", "bn_stat_loss"):
        ours = frozen_step(freeze_teacher(network, dtype=torch.bfloat16), images(8, torch.bfloat16))
    # each error is a sum of many roundings: a tenth, and a thousandth of the value, are chance
    for mine, theirs, value in zip(ours, original, exact, strict=True):
        assert (mine - value).norm() <= 1.1 * (theirs - value).norm() + 1e-3 * value.norm()


def test_fused_backend_runs_in_the_network():
    """The float32 step on this machine's best backend: close to the float64 step, whichever that is."""
    network = trained_looking(NETWORKS["cifar:resnet18"]())
    exact = hooked_step(copy.deepcopy(network).double(), images(4))
    ours = frozen_step(freeze_teacher(network), images(4, torch.float32))
    assert_same(ours, exact, tolerance=2e-4)


def test_the_given_network_is_not_changed():
    network = NETWORKS["cifar:wrn16_1"]().train()
    before = copy.deepcopy(network.state_dict())
    x = images(dtype=torch.float32)
    freeze_teacher(network, dtype=torch.bfloat16)(x)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert value.dtype == before[key].dtype
        assert torch.equal(value, before[key])
    assert not any(isinstance(module, (FrozenConv2d, StatBatchNorm2d)) for module in network.modules())


def test_frozen_means_eval_and_no_weight_gradients():
    teacher = freeze_teacher(NETWORKS["cifar:wrn16_1"]())
    nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    x = images(dtype=torch.float32).requires_grad_()
    teacher(x).logits.sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_dtypes_of_weights_statistics_and_targets():
    network = NETWORKS["cifar:wrn16_1"]()
    teacher = freeze_teacher(network, dtype=torch.bfloat16)
    assert {module.weight.dtype for module in teacher.modules() if isinstance(module, FrozenConv2d)} == {torch.bfloat16}
    assert {vector.dtype for target in teacher.targets for vector in target} == {torch.float32}
    logits, features, moments = teacher(images(dtype=torch.float32))
    assert logits.dtype == features.dtype == torch.bfloat16
    assert moments[0].sum.dtype == torch.float32
    assert features.is_contiguous(memory_format=torch.channels_last)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(teacher.targets) == len(norms)
    assert {float(mean.sum()) for mean, _ in teacher.targets} == {float(norm.running_mean.sum()) for norm in norms}


def test_targets_follow_the_order_of_the_network():
    """Layer weights (SRe2L gives the first layer ten times the weight of the others) count layers as they run."""
    network = trained_looking(NETWORKS["resnet18"]())
    expected = [module.running_mean for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for (mean, _), running_mean in zip(freeze_teacher(network).targets, expected, strict=True):
        assert torch.equal(mean, running_mean)


@pytest.mark.parametrize("traced", [True, False])
def test_maps(traced):
    network = trained_looking(NETWORKS["resnet18"]().double() if traced else Untraceable().double())
    names = ("layer1", "layer4") if traced else ("stem", "stage")
    teacher = freeze_teacher(network)
    expected = {}
    for name in names:
        hook = network.get_submodule(name)
        hook.register_forward_hook(lambda module, inputs, output, name=name: expected.update({name: output}))
    network(images())
    logits, _, _, maps = teacher(images(), maps=names)
    assert tuple(maps) == names
    for name in names:
        assert_same((maps[name],), (expected[name],))
    assert torch.equal(logits, teacher(images()).logits)
    assert teacher(images(), maps=names, moments=False).moments == []


@pytest.mark.parametrize("name", ["cifar:resnet18", "cifar:wrn16_1", "timm:resnet18", "untraceable"])
def test_maps_of_inputs(name):
    """What every BatchNorm reads, and what a stage reads, where fusion has removed the layer before it."""
    network = trained_looking((Untraceable() if name == "untraceable" else NETWORKS[name]()).double())
    teacher = freeze_teacher(network)
    stages = {"cifar:wrn16_1": ("block2", "block3"), "untraceable": ("stage",)}.get(name, ("layer1", "layer4"))
    teacher(images())  # what cannot be traced is known after a pass: one of its layers does not run
    norms = [
        path for path, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and path != "unused"
    ]
    assert sorted(teacher.norm_inputs) == sorted(f"{path}:input" for path in norms)
    expected = {}
    for path in (*norms, *stages):
        hook = network.get_submodule(path)
        hook.register_forward_hook(lambda module, inputs, output, path=path: expected.update({path: inputs[0].clone()}))
    network(images())
    names = (*teacher.norm_inputs, *(f"{path}:input" for path in stages))
    maps = teacher(images(), maps=names).maps
    for path, value in expected.items():
        assert_same((maps[f"{path}:input"],), (value,))


def test_maps_names_what_is_not_there():
    teacher = freeze_teacher(NETWORKS["resnet18"]())
    with pytest.raises(ValueError, match=r"maps 'layer9': no such module.*choose from .*layer1, layer2"):
        teacher(images(dtype=torch.float32), maps=("layer9",))
    with pytest.raises(ValueError, match=r"maps 'layer1\.0\.bn1': .*fuse=False"):
        teacher(images(dtype=torch.float32), maps=("layer1.0.bn1",))
    unfused = freeze_teacher(NETWORKS["resnet18"](), fuse=False)
    assert "layer1.0.bn1" in unfused(images(dtype=torch.float32), maps=("layer1.0.bn1",)).maps


def test_a_network_that_cannot_be_traced_still_works():
    network = trained_looking(Untraceable().double())
    teacher = freeze_teacher(network)
    assert any("torch.fx cannot trace it" in line for line in teacher.report)
    x = images()
    assert_same(frozen_step(teacher, x), hooked_step(network, x))
    assert len(teacher.targets) == 2  # in the order of the calls, without the layer that did not run
    assert torch.equal(teacher.targets[0][0], network.stem[1].running_mean)
    assert teacher(x).features.shape == (2, 8, 16, 16)
    assert_same((teacher(x, moments=False).logits,), (network(x).detach(),))
    assert teacher.class_weights is None


def test_share_shows_the_students_steps_at_once():
    student = trained_looking(NETWORKS["cifar:wrn16_1"]().double())
    twin = freeze_teacher(student, share=True)
    x = images()
    before = frozen_step(twin, x)
    assert_same(before, hooked_step(student, x))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student.train()
    F.cross_entropy(student(x), torch.tensor([1, 2])).backward()  # also moves the running statistics
    optimizer.step()
    student.eval()
    after = frozen_step(twin, x)
    assert_same(after, hooked_step(student, x))
    assert not torch.equal(before[0], after[0])
    assert {p.data_ptr() for p in student.parameters()} >= {p.data_ptr() for p in twin.parameters()}
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_deepcopy_is_independent():
    teacher = freeze_teacher(trained_looking(NETWORKS["cifar:wrn16_1"]().double()))
    twin = copy.deepcopy(teacher)
    x = images()
    before = teacher(x, maps=("block1",)).logits
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert torch.equal(twin(x, maps=("block1",)).logits, before)
    assert torch.equal(twin(x).logits, before)


def test_compiles_without_a_graph_break():
    teacher = freeze_teacher(trained_looking(NETWORKS["cifar:wrn16_1"]()))

    def step(x):
        logits, features, moments, maps = teacher(x, maps=("block1",))
        return bn_stat_loss(moments, teacher.targets) + logits.sum() + maps["block1"].mean() + features.mean()

    x = images(dtype=torch.float32).requires_grad_()
    with pytest.raises(Exception, match="call prepare"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    teacher.prepare(maps=("block1",))
    torch.compiler.reset()
    (eager,) = torch.autograd.grad(step(x), x)
    (compiled,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(compiled, eager)


@needs_gpu
@pytest.mark.gpu
def test_capturable():
    teacher = freeze_teacher(trained_looking(NETWORKS["cifar:wrn16_1"]()).to(DEVICE))

    def step(x):
        logits, _, moments = teacher(x)
        loss = bn_stat_loss(moments, teacher.targets) + logits.square().mean()
        return loss.detach(), *torch.autograd.grad(loss, x)

    check_capturable(step, images(dtype=torch.float32).to(DEVICE).requires_grad_())
