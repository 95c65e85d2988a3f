"""The thin residual networks for CIFAR: three stages of 16, 32 and 64 channels, shortcuts without parameters.

Depth is 6 n + 2 for n blocks a stage: ResNet-20, 32, 44, 56 and 110. Where a stage halves the image and doubles the
channels, the shortcut keeps every second pixel and appends channels of zeros ("option A"). Keys of a state dict are
those of the checkpoints that are published for CIFAR-10 (https://github.com/akamaster/pytorch_resnet_cifar10), so
that these load as they are; those expect pixels of mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.config.image_size import Size
from dfkd_fast.models.cifar import conv3x3, he_init, pooled


class Block(nn.Module):
    """Two 3x3 convolutions with BN, plus the input; twice the channels at half the size, or neither."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.widens = out_chans != in_chans
        self.conv1 = conv3x3(in_chans, out_chans, 2 if self.widens else 1)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = conv3x3(out_chans, out_chans)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.missing = (out_chans - in_chans) // 2  # channels of zeros before and behind those of the shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, out_chans, H, W), or half of H and W, rounded up, where the block widens."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing, self.missing))
        return F.relu(out + x)


class ThinResNet(nn.Module):
    """Normalised images (B, C, H, W) -> logits (B, K); 64 features."""

    def __init__(self, blocks: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32), *(Block(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64), *(Block(64, 64) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(pooled(x))


def resnet20(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-20 for CIFAR: 3 blocks a stage."""
    return ThinResNet(3, num_classes, in_chans)


def resnet32(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-32 for CIFAR: 5 blocks a stage."""
    return ThinResNet(5, num_classes, in_chans)


def resnet44(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-44 for CIFAR: 7 blocks a stage."""
    return ThinResNet(7, num_classes, in_chans)


def resnet56(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-56 for CIFAR: 9 blocks a stage."""
    return ThinResNet(9, num_classes, in_chans)


def resnet110(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-110 for CIFAR: 18 blocks a stage."""
    return ThinResNet(18, num_classes, in_chans)
