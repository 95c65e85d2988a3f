"""The small-image networks of the data-free distillation literature: CIFAR ResNets, wide ResNets and VGG-11.

Every network maps images (B, C, H, W), normalised, to logits (B, K) and can be traced by torch.fx and scripted by
torch.jit. Stages are sub-modules, so that a map can be asked for by name. Names of parameters, and with them the keys
of a checkpoint, are those of the checkpoints that the field has released (CMI, Fast, NAYER): hence one attribute is
`convShortcut`.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385;
Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016, arXiv:1605.07146;
Simonyan, Zisserman, "Very deep convolutional networks", ICLR 2015, arXiv:1409.1556.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize, Size


def conv3x3(in_chans: int, out_chans: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image size at stride 1."""
    return nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=bias)


def pooled(maps: Tensor) -> Tensor:
    """Global average pooling: maps (B, D, H, W) -> features (B, D)."""
    return F.adaptive_avg_pool2d(maps, 1).flatten(1)


def he_init(model: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k^2 out)), zero all biases (He et al. 2015, arXiv:1502.01852, fan-out form)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BN, plus a shortcut: projected (1x1 convolution and BN) where the shape changes."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = conv3x3(out_chans, out_chans)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_chans != out_chans:
            projection = nn.Conv2d(in_chans, out_chans, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, out_chans, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def residual_stage(in_chans: int, out_chans: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` basic blocks; the first one changes width and size."""
    first = BasicBlock(in_chans, out_chans, stride)
    return nn.Sequential(first, *(BasicBlock(out_chans, out_chans) for _ in range(depth - 1)))


class ResNet(nn.Module):
    """ResNet with the CIFAR stem: a 3x3 convolution of stride 1, no max-pooling, stages of 64 to 512 channels.

    Initialised as PyTorch does by default, which is what the released teachers and students start from.
    """

    def __init__(self, depths: tuple[int, int, int, int], num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = residual_stage(64, 64, depths[0], stride=1)
        self.layer2 = residual_stage(64, 128, depths[1], stride=2)
        self.layer3 = residual_stage(128, 256, depths[2], stride=2)
        self.layer4 = residual_stage(256, 512, depths[3], stride=2)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(pooled(x))


class PreActBlock(nn.Module):
    """BN, ReLU, convolution, twice. Where the width changes, the shortcut is a bare 1x1 convolution of relu(bn1(x))."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chans)
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.conv2 = conv3x3(out_chans, out_chans)
        widens = in_chans != out_chans
        self.convShortcut = nn.Conv2d(in_chans, out_chans, 1, stride=stride, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, out_chans, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class PreActStage(nn.Module):
    """`depth` pre-activation blocks, kept under the name `layer` as in the released checkpoints."""

    def __init__(self, in_chans: int, out_chans: int, depth: int, stride: int) -> None:
        super().__init__()
        first = PreActBlock(in_chans, out_chans, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(out_chans, out_chans) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, out_chans, H / stride, W / stride)."""
        maps: Tensor = self.layer(x)
        return maps


class WideResNet(nn.Module):
    """Pre-activation wide ResNet without dropout: `depth` = 6 n + 4 layers, stages of 16 k, 32 k and 64 k channels."""

    def __init__(self, depth: int, widen_factor: int, num_classes: int, in_chans: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = conv3x3(in_chans, widths[0])
        self.block1 = PreActStage(widths[0], widths[1], blocks, stride=1)
        self.block2 = PreActStage(widths[1], widths[2], blocks, stride=2)
        self.block3 = PreActStage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(pooled(F.relu(self.bn1(x))))


def _vgg_block(in_chans: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Convolutions with bias, BN and ReLU between them; the last ReLU belongs to the network's forward."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [conv3x3(in_chans, width, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
        in_chans = width
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    """VGG-11 with BN for small images: one linear classifier on the globally pooled last map.

    Images of 64 pixels and more are halved once more before the last block, smaller ones are not.
    """

    def __init__(self, num_classes: int, in_chans: int, image_size: Size) -> None:
        super().__init__()
        self.block0 = _vgg_block(in_chans, (64,))
        self.block1 = _vgg_block(64, (128,))
        self.block2 = _vgg_block(128, (256, 256))
        self.block3 = _vgg_block(256, (512, 512))
        self.block4 = _vgg_block(512, (512, 512))
        self.pool = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2) if ImageSize.of(image_size).short >= 64 else nn.Identity()
        self.classifier = nn.Linear(512, num_classes)
        he_init(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        x = self.pool(F.relu(self.block0(x)))
        x = self.pool(F.relu(self.block1(x)))
        x = self.pool(F.relu(self.block2(x)))
        x = self.pool3(F.relu(self.block3(x)))
        return self.classifier(pooled(F.relu(self.block4(x))))


# One signature for all builders, so that the factory needs no exceptions; only vgg11 depends on the image size.


def resnet18(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-18 with the CIFAR stem; 512 features."""
    return ResNet((2, 2, 2, 2), num_classes, in_chans)


def resnet34(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """ResNet-34 with the CIFAR stem; 512 features."""
    return ResNet((3, 4, 6, 3), num_classes, in_chans)


def wrn16_1(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """WRN-16-1; 64 features."""
    return WideResNet(16, 1, num_classes, in_chans)


def wrn16_2(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """WRN-16-2; 128 features."""
    return WideResNet(16, 2, num_classes, in_chans)


def wrn40_1(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """WRN-40-1; 64 features."""
    return WideResNet(40, 1, num_classes, in_chans)


def wrn40_2(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """WRN-40-2; 128 features."""
    return WideResNet(40, 2, num_classes, in_chans)


def vgg11(num_classes: int, *, in_chans: int = 3, image_size: Size = 32) -> nn.Module:
    """VGG-11 with BN and one linear classifier; 512 features."""
    return VGG(num_classes, in_chans, image_size)
