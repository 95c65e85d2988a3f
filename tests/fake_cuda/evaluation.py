"""Evaluation of images that lie on the card, on another one and on the host."""

from __future__ import annotations

from unittest.mock import patch

import torch
from card import fake_card
from scan import allowed
from torch import nn
from watch import Watch
from whole_runs import SHAPE

from dfkd_fast.data.splits import ImageSet
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training import evaluate

PLACES = ("cuda:0", "cuda:1", "cpu")


def evaluated() -> dict[str, list[str]]:
    """The kinds of finding by where the images lie, and the names that `--device auto` and `cuda` give the card."""
    said = {place: _findings(place) for place in PLACES}
    with fake_card(Watch()):
        said["devices"] = [str(make_runtime(device=name).device) for name in ("auto", "cuda", "cuda:0")]
    return said


def _findings(place: str) -> list[str]:
    watch = Watch()
    with fake_card(watch), patch.object(evaluate, "_summarised", lambda top, _images: top):
        runtime = make_runtime(device="cuda")
        pixels = torch.zeros(10, 8, 8, 3, dtype=torch.uint8, device=place)
        labels = torch.zeros(10, dtype=torch.int64)
        images = ImageSet("fake", pixels, labels, tuple(map(str, range(10))), digest="")
        info = ModelInfo(name="linear", num_classes=10, image_size=8, **SHAPE)
        model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 10)).to(runtime.device)
        evaluate.evaluate(model, images, info=info, runtime=runtime, batch_size=4)
    return sorted({found.kind for found in watch.findings if not allowed(found)})
