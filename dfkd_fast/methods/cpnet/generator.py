"""The generator of CPNet: the teacher backwards, a stage for each of its nodes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.generators.layers import UpsampleConv2d, at_least_float32, in_format_of
from dfkd_fast.generators.noisy import NoisyLayer
from dfkd_fast.methods.cpnet.nodes import TeacherNode
from dfkd_fast.models.info import ModelInfo


class CoupledGenerator(nn.Module):
    """Label embedding -> BN -> noisy layers -> linear stem -> BN, then from node to node upsampling, 3x3 convolution,
    BN, LeakyReLU(0.2), and a last 3x3 convolution to the image, sigmoid. CPNet (Chen et al., ICCV 2025).

    Embeddings (B, embedding_dim) -> images (B, in_chans, H, W) in [0, 1], and what each stage has made, (B, channels,
    h, w) of each of `nodes`, the deepest first. The noisy layers are NAYER's: every `num_classes` images of the
    `batch_size` in turn share one.
    """

    def __init__(
        self, nodes: Sequence[TeacherNode], info: ModelInfo, *, embedding_dim: int, batch_size: int, noise_features: int
    ) -> None:
        super().__init__()
        deepest, shallowest = nodes[0], nodes[-1]
        self.start = (deepest.channels, *deepest.size)
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.noise = NoisyLayer(embedding_dim, noise_features, batch_size=batch_size, group_size=info.num_classes)
        self.stem = nn.Linear(noise_features, deepest.channels * deepest.size.area)
        self.stem_norm = nn.BatchNorm2d(deepest.channels)
        self.stages = nn.ModuleList(_stage(deep, shallow) for deep, shallow in pairwise(nodes))
        self.resize = _resize(shallowest.size, info.image_size)
        self.to_rgb = nn.Conv2d(shallowest.channels, info.in_chans, 3, padding=1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults; noisy layers from N(0, 1))."""
        self.noise.reset_parameters()
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
                layer.reset_parameters()

    def forward(self, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.stem(self.noise(self.norm(embeddings))).view(-1, *self.start)
        made = [self.stem_norm(in_format_of(self.to_rgb, maps))]
        for stage in self.stages:
            made.append(stage(made[-1]))
        return torch.sigmoid(at_least_float32(self.to_rgb(self.resize(made[-1])))), made


def _stage(deep: TeacherNode, shallow: TeacherNode) -> nn.Sequential:
    """From the maps of one node to those of the next."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if shallow.size.divided(2) == deep.size:
        layers["conv"] = UpsampleConv2d(deep.channels, shallow.channels)
    else:
        layers["resize"] = _resize(deep.size, shallow.size)
        layers["conv"] = nn.Conv2d(deep.channels, shallow.channels, 3, padding=1, bias=False)
    layers["norm"] = nn.BatchNorm2d(shallow.channels)
    layers["act"] = nn.LeakyReLU(0.2, inplace=True)
    return nn.Sequential(layers)


def _resize(size: ImageSize, wanted: ImageSize) -> nn.Module:
    """To another size by nearest neighbours."""
    return nn.Identity() if size == wanted else nn.Upsample(size=tuple(wanted))
