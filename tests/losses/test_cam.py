"""Activation maps of student and teacher against versions with hooks and loops over samples, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.losses.cam import cam_distance, class_maps, grad_cams
from dfkd_fast.models.activation_maps import CamPair
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, frozen_alias, stage_ends

SHAPE = {"num_classes": 4, "image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def network(spec: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return load_model(spec, **SHAPE)[0].double()


def views(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def hooked_cams(
    model: nn.Module, view: Tensor, modules: Sequence[str], classes: Tensor, *, times_map: bool, relu: bool
) -> tuple[Tensor, list[Tensor]]:
    """The networks' own way: hooks keep a stage's output; then a loop over samples and channels. In training the score
    is that of the batch: through BN's statistics every sample takes part in all.
    """
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in modules
    ]
    logits = model(view)
    cams = []
    for name in modules:
        values = seen[name]
        rows = []
        score = sum(logits[sample, cls] for sample, cls in enumerate(classes.tolist()))
        gradients = torch.autograd.grad(score, values, retain_graph=True)[0]
        for sample, gradient in enumerate(gradients):
            cam = torch.zeros_like(values[sample, 0])
            for p in range(values.shape[1]):  # Eq. 13, or the mean of the gradient alone
                share = (gradient[p] * values[sample, p].detach() if times_map else gradient[p]).sum() / cam.numel()
                cam = cam + share.detach() * values[sample, p]  # Eq. 11
            rows.append(cam.clamp(min=0) if relu else cam)  # Eq. 14
        cams.append(torch.stack(rows))
    for handle in handles:
        handle.remove()
    return logits, cams


@pytest.mark.parametrize(("weighting", "relu"), [("gradient", False), ("gradient_times_map", True)])
def test_grad_cams_and_their_gradients(weighting: str, relu: bool) -> None:
    """Of a network in evaluation mode; the maps, and what a loss on them gives its weights."""
    names, classes = ("layer1", "layer2"), torch.tensor([3, 0, 0])
    ours, theirs = (network("resnet8", 1).eval() for _ in range(2))
    out = FeatureExtractor(ours, maps=names)(views())
    found = grad_cams(out.logits, [out.maps[name] for name in names], classes, weighting=weighting, relu=relu)
    times_map = weighting == "gradient_times_map"
    _, expected = hooked_cams(theirs, views(), names, classes, times_map=times_map, relu=relu)
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    sum(cam.square().sum() for cam in found).backward()
    sum(cam.square().sum() for cam in expected).backward()
    for name, weight in theirs.named_parameters():
        mine = ours.get_parameter(name).grad
        assert (mine is None) == (weight.grad is None), name
        if weight.grad is not None:
            torch.testing.assert_close(mine, weight.grad, rtol=1e-9, atol=1e-8)


def test_class_maps() -> None:
    """Eq. 10, a class, sample and channel at a time; without the bias, their means are the logits."""
    features = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    classifier = nn.Linear(5, 4).double()
    found = class_maps(features, classifier.weight)
    for sample in range(2):
        for cls in range(4):
            expected = sum(classifier.weight[cls, p] * features[sample, p] for p in range(5))
            close(found[sample, cls], expected)
    close(found.mean((2, 3)) + classifier.bias, classifier(features.mean((2, 3))))
    assert class_maps(features.bfloat16(), classifier.weight).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        close(class_maps(features, classifier.weight), found)


def test_cam_distance_pools_the_larger() -> None:
    """Eq. 15; sizes that differ meet at the smaller one, whose cells are means of the larger's."""
    student = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros((), dtype=torch.float64)
    for sample in range(2):
        for row in range(2):
            for column in range(2):
                cell = student[sample, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
                expected = expected + (cell - teacher[sample, row, column].detach()) ** 2 / 8
    found = cam_distance(student, teacher)
    close(found, expected)
    close(torch.autograd.grad(found, student, retain_graph=True)[0], torch.autograd.grad(expected, student)[0])
    assert not torch.autograd.grad(found, teacher, allow_unused=True)[0]
    close(cam_distance(teacher, student), expected)


def test_the_pair_is_the_sum_over_stages() -> None:
    """A frozen, fused teacher and a student in training against both networks with hooks: values, gradients, and no
    gradient for the student's classifier but the one through its logits.
    """
    model, info = load_model("resnet8", **SHAPE)
    runtime = make_runtime(device="cpu", precision="fp64")
    plain = model.double().eval()
    teacher, student, theirs = FrozenNet(plain, info, runtime), network("wrn16_1", 3), network("wrn16_1", 3)
    pair = CamPair(teacher, frozen_alias(student), 3)
    assert pair.teacher_maps == ("layer1", "layer2", "layer3")
    assert pair.student_maps == ("block1", "block2", "block3")
    out = FeatureExtractor(student, maps=pair.student_maps)(views())
    deep, shallow = pair(teacher.answer(views(), maps=pair.teacher_maps, gradients=True), out)
    logits, wanted = hooked_cams(
        plain, views(), pair.teacher_maps, classes=plain(views()).argmax(1), times_map=False, relu=False
    )
    _, seen = hooked_cams(theirs, views(), pair.student_maps, classes=logits.argmax(1), times_map=False, relu=False)
    expected = sum((s - t.detach()).square().mean() for s, t in zip(seen, wanted, strict=True))
    close(shallow, expected)
    (deep + shallow).backward()
    assert student.fc.weight.grad is None
    assert all(weight.grad is None for weight in teacher.net.parameters())
    expected.backward()
    deepest = student.block3.layer[1].conv2.weight.grad
    assert deepest is not None
    assert not torch.allclose(deepest, theirs.block3.layer[1].conv2.weight.grad), "the class maps are missing"


def test_stages_are_found() -> None:
    assert stage_ends(network("cnn", 0)) == (("conv2:input",), ("conv3:input",))
    assert [names[0] for names in stage_ends(network("vgg11", 0))] == [f"block{number}" for number in range(5)]
    info = load_model("vgg11", **SHAPE | {"image_size": 32})[1]
    fused = FrozenNet(network("vgg11", 0), info, make_runtime(device="cpu", precision="fp64"))
    assert fused.stage_maps(2) == ("block1:input", "block2:input")  # block0 ends inside a fused operator
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"^--student: no stages"):
        CamPair(fused, plain, 3)
    with pytest.raises(UserError, match=r"^--teacher plain: no stages"):
        FrozenNet(plain, info.__class__(name="plain", **SHAPE), make_runtime(device="cpu")).stage_maps(3)
