"""Tiny networks for the demonstration on handwritten digits and for tests: they train in seconds on one CPU core.

Same contract as the networks of `cifar`: normalised images (B, C, H, W) -> logits (B, K), stages as named sub-modules.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.config.image_size import Size
from dfkd_fast.models.cifar import conv3x3, he_init, pooled, residual_stage


class ConvNet(nn.Module):
    """Three times convolution, BN, ReLU; the second and the third halve the image: the last map is (B, D, H/4, W/4)."""

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = conv3x3(widths[0], widths[1], stride=2)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.conv3 = conv3x3(widths[1], widths[2], stride=2)
        self.bn3 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(pooled(x))


class SlimResNet(nn.Module):
    """The 3-stage CIFAR ResNet of 16, 32 and 64 channels (He et al. 2016, section 4.2) with projected shortcuts."""

    def __init__(self, blocks: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = residual_stage(16, 16, blocks, stride=1)
        self.layer2 = residual_stage(16, 32, blocks, stride=2)
        self.layer3 = residual_stage(32, 64, blocks, stride=2)
        self.fc = nn.Linear(64, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(pooled(x))


def cnn(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """Three-layer BN network of 16, 32 and 64 channels; 64 features. The demonstration's teacher."""
    return ConvNet((16, 32, 64), num_classes, in_chans)


def cnn_s(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """Three-layer BN network of half `cnn`'s width; 32 features. The demonstration's student."""
    return ConvNet((8, 16, 32), num_classes, in_chans)


def resnet8(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-8: one basic block a stage; 64 features."""
    return SlimResNet(1, num_classes, in_chans)
