"""Evaluation counts what it says, on any batch size, and leaves the network as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_fast.data.splits import ImageSet
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.small import cnn_s
from dfkd_fast.training.evaluate import Evaluation, agreement, evaluate

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp32")


def image_set(images: Tensor, labels: Sequence[int], num_classes: int) -> ImageSet:
    names = tuple(str(index) for index in range(num_classes))
    return ImageSet("some", images, torch.tensor(labels), names, digest="")


def info_of(images: ImageSet) -> ModelInfo:
    return ModelInfo(name="net", num_classes=images.num_classes, image_size=images.image_size, mean=MEAN, std=STD)


def random_images(count: int, num_classes: int = 10) -> ImageSet:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
    return image_set(pixels, torch.randint(num_classes, (count,)).tolist(), num_classes)


class Lookup(nn.Module):
    """Reads the prediction that a test wrote into the first pixel, so that every accuracy is known."""

    def __init__(self, ranking: Tensor) -> None:
        super().__init__()
        self.ranking = ranking

    def forward(self, view: Tensor) -> Tensor:
        row = ((view[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).round().long()
        return self.ranking[row]


def test_counts_by_hand(runtime: Runtime) -> None:
    ranking = torch.tensor(  # logits over 7 classes
        [[9, 5, 4, 3, 2, 1, 0], [0, 9, 1, 2, 3, 4, 5], [5, 4, 9, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 9]],
        dtype=torch.float32,
    )
    pixels = torch.zeros(4, 2, 2, 3, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(4, dtype=torch.uint8)
    # the label's rank: first; below the five best; fifth; second
    images = image_set(pixels, [0, 0, 4, 5], num_classes=7)
    found = evaluate(Lookup(ranking), images, info=info_of(images), runtime=runtime, batch_size=3)
    assert found.predictions.tolist() == [0, 1, 2, 6]
    assert (found.top1, found.top5) == (0.25, 0.75)
    assert found.per_class[0] == 0.5
    assert (found.per_class[4], found.per_class[5]) == (0.0, 0.0)
    assert all(math.isnan(found.per_class[index]) for index in (1, 2, 3, 6))


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_any_batch_size_gives_the_plain_result(runtime: Runtime, batch_size: int) -> None:
    images = random_images(20)
    model = cnn_s(10).double().eval()
    view = (images.images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / (
        torch.tensor(STD).double().view(1, 3, 1, 1)
    )
    with torch.no_grad():
        logits = model(view)
    found = evaluate(model.float(), images, info=info_of(images), runtime=runtime, batch_size=batch_size)
    assert torch.equal(found.predictions, logits.argmax(1))
    assert found.top1 == pytest.approx((logits.argmax(1) == images.labels).double().mean().item())
    fifth = logits.sort(dim=1, descending=True).values[:, 4:5]
    in_top5 = logits.gather(1, images.labels[:, None]) >= fifth
    assert found.top5 == pytest.approx(in_top5.double().mean().item())


def test_every_batch_has_one_shape(runtime: Runtime) -> None:
    shapes: set[torch.Size] = set()

    def model(view: Tensor) -> Tensor:
        shapes.add(view.shape)
        return view.mean((2, 3)).repeat(1, 4)[:, :10]

    images = random_images(20)
    found = evaluate(model, images, info=info_of(images), runtime=runtime, batch_size=8)
    assert shapes == {torch.Size((8, 3, 32, 32))}
    assert found.predictions.shape == (20,)


class HostReads(TorchDispatchMode):
    """Notes when a value is read from the device or a shape depends on one."""

    WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item"})

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.log.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_before_the_end(runtime: Runtime) -> None:
    images, net = random_images(30), cnn_s(10)
    with HostReads() as reads:

        def model(view: Tensor) -> Tensor:
            reads.log.append("step")
            logits: Tensor = net(view)
            return logits

        evaluate(model, images, info=info_of(images), runtime=runtime, batch_size=8)
    assert reads.log[:4] == ["step"] * 4
    assert "_local_scalar_dense" in reads.log[4:]  # the recorder does see such reads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_cpu_result(runtime: Runtime) -> None:
    images, model = random_images(50), cnn_s(10)
    expected = evaluate(model, images, info=info_of(images), runtime=runtime, batch_size=16)
    gpu = make_runtime(device="cuda", precision="fp32", channels_last=True)
    found = evaluate(gpu.place(model), images, info=info_of(images), runtime=gpu, batch_size=16)
    assert agreement(found, expected) >= 0.98  # a near tie may fall the other way


def test_modes_and_statistics_are_left_alone(runtime: Runtime) -> None:
    images = random_images(9)
    model = cnn_s(10).train()
    model.bn2.eval()  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, images, info=info_of(images), runtime=runtime, batch_size=4)
    assert model.training
    assert model.bn1.training  # type: ignore[union-attr]
    assert not model.bn2.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_precisions(precision: str) -> None:
    runtime = make_runtime(device="cpu", precision=precision, channels_last=True)
    dtypes: list[torch.dtype] = []
    images = random_images(12)
    model = runtime.place(cnn_s(10))

    def recording(view: Tensor) -> Tensor:
        assert view.is_contiguous(memory_format=torch.channels_last)
        logits: Tensor = model(view)
        dtypes.append(logits.dtype)
        return logits

    found = evaluate(recording, images, info=info_of(images), runtime=runtime, batch_size=6)
    assert set(dtypes) == {runtime.compute_dtype}
    assert found.predictions.shape == (12,)


def test_fewer_than_five_classes(runtime: Runtime) -> None:
    images = random_images(6, num_classes=3)
    found = evaluate(cnn_s(3), images, info=info_of(images), runtime=runtime)
    assert found.top5 == 1.0


def test_agreement() -> None:
    def of(*predictions: int) -> Evaluation:
        return Evaluation(0.0, 0.0, (), torch.tensor(predictions))

    assert agreement(of(1, 2, 3, 4), of(1, 2, 0, 4)) == 0.75


@pytest.mark.parametrize(
    ("num_classes", "image_size", "message"),
    [
        (100, 32, "--data some: 10 classes, but net knows 100"),
        (10, 28, "--data some: images of 32 pixels, but net takes 28; give --image-size 28"),
    ],
)
def test_images_and_network_must_fit(runtime: Runtime, num_classes: int, image_size: int, message: str) -> None:
    info = ModelInfo(name="net", num_classes=num_classes, image_size=image_size, mean=MEAN, std=STD)
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        evaluate(cnn_s(num_classes), random_images(4), info=info, runtime=runtime)
