"""Small networks with lived-in BN statistics, in float64."""

from __future__ import annotations

import torch
from torch import nn

from dfkd_fast.models.factory import ModelInfo, load_model

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
