"""Published CIFAR-10 teachers have their published accuracy, by one command and without a flag for size or classes.

Reads DATA (`cifar10`) and TEACHERS (`teachers`) below the folder in DFKD_TEST_DATA, and skips where that is not set.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dfkd_fast.cli.main import main

IMAGENETS = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "file", "top1"),
    [
        ("resnet20", "resnet20-12fca82f.th", "0.9173"),
        ("resnet32", "resnet32-d509ac18.th", "0.9263"),
        ("resnet44", "resnet44-014dd654.th", "0.9310"),
        ("resnet56", "resnet56-4bfd9763.th", "0.9339"),
    ],
)
def test_published_accuracy(name: str, file: str, top1: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = os.environ.get("DFKD_TEST_DATA")
    if not root:
        pytest.skip("DFKD_TEST_DATA is not set: no published teachers, no CIFAR-10")
    checkpoint, data = Path(root) / "teachers" / file, Path(root) / "cifar10"
    command = ["eval", str(checkpoint), "--student", name, "--data", str(data), *IMAGENETS, "--threads", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "on 10000 images" in shown
    assert f"32 px (what {name} is made for)" in shown
    assert "10 classes (the last layer in its file)" in shown
    assert re.findall(r"^top-1 (\S+)", shown, re.MULTILINE) == [top1]
