"""Published CIFAR-10 teachers, through a network file of one's own, have their published accuracy.

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

CODE = '''
"""Residual networks for CIFAR (He et al., 2015, section 4.2): three stages, shortcuts without parameters (option A)."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.stride, self.pad = outs // ins, (outs - ins) // 2
        self.conv1 = nn.Conv2d(ins, outs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = [(16, 16), (16, 32), (32, 64)]
        stages = [nn.Sequential(Block(a, b), *(Block(b, b) for _ in range(blocks - 1))) for a, b in widths]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))
'''


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("file", "blocks", "top1"), [("resnet20-12fca82f.th", 3, 0.9173), ("resnet56-4bfd9763.th", 9, 0.9339)]
)
def test_published_accuracy(tmp_path: Path, file: str, blocks: int, top1: float) -> None:
    root = os.environ.get("DFKD_TEST_DATA")
    if not root:
        pytest.skip("DFKD_TEST_DATA is not set: no published teachers, no CIFAR-10")
    (tmp_path / "resnet_cifar.py").write_text(CODE)
    model, info = load_model(
        f"{tmp_path}/resnet_cifar.py:ResNet?blocks={blocks}",
        image_size=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        weights=Path(root) / "teachers" / file,
    )
    runtime = make_runtime(device="cpu", precision="fp32")
    found = evaluate(model, load_split(Path(root) / "cifar10", "test"), info=info, runtime=runtime)
    assert round(found.top1, 4) == top1
