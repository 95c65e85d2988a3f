"""Published CIFAR-10 teachers have their published accuracy.

Reads DATA (`cifar10`) and TEACHERS (`teachers`) below the folder in DFKD_TEST_DATA, and skips where that is not set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfkd_fast.data.splits import load_split
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.evaluate import evaluate


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "file", "top1"),
    [
        ("resnet20", "resnet20-12fca82f.th", 0.9173),
        ("resnet32", "resnet32-d509ac18.th", 0.9263),
        ("resnet44", "resnet44-014dd654.th", 0.9310),
        ("resnet56", "resnet56-4bfd9763.th", 0.9339),
    ],
)
def test_published_accuracy(name: str, file: str, top1: float) -> None:
    root = os.environ.get("DFKD_TEST_DATA")
    if not root:
        pytest.skip("DFKD_TEST_DATA is not set: no published teachers, no CIFAR-10")
    model, info = load_model(
        name,
        image_size=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights=Path(root) / "teachers" / file,
    )
    runtime = make_runtime(device="cpu", precision="fp32")
    found = evaluate(model, load_split(Path(root) / "cifar10", "test"), info=info, runtime=runtime)
    assert round(found.top1, 4) == top1
