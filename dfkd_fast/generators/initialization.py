"""Initialisations that a method asks for instead of PyTorch's own."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def dcgan_init(module: nn.Module, std: float = 0.02) -> None:
    """Draw linear and convolution weights from N(0, std^2), BatchNorm weights from N(1, std^2), zero biases, in place.

    Radford, Metz, Chintala, ICLR 2016 (arXiv:1511.06434), section 3, and with BatchNorm as CMI's release has it.
    Running statistics stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            layer.weight.normal_(1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, std)
            if layer.bias is not None:
                layer.bias.zero_()


@torch.no_grad()
def kaiming_init(module: nn.Module, norm_std: float = 0.02) -> None:
    """Draw linear and convolution weights from N(0, 2 / fan_in), BatchNorm weights from N(1, norm_std^2), zero biases,
    in place. He et al., ICCV 2015; with BatchNorm as SpaceshipNet's release has it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1.0, norm_std)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def draw_small(*layers: nn.Module, std: float = 0.02) -> None:
    """Draw the layers' weights, BatchNorm's too, from N(0, std^2), and zero their biases, in place."""
    for layer in layers:
        layer.get_parameter("weight").normal_(0, std)
        layer.get_parameter("bias").zero_()
