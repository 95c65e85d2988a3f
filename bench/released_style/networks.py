"""The generators, one with its list of noisy Linears and one with latents, and hooks on the teacher's BatchNorms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class NoisyLinears(nn.Module):
    """One Linear for every `num_classes` images, in a Python list; the output grows by concatenation."""

    def __init__(self, embedding_dim: int, width: int, *, batch_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.group = num_classes
        self.layers = nn.ModuleList(nn.Linear(embedding_dim, width) for _ in range(-(-batch_size // num_classes)))

    def reset(self) -> None:
        """New noise: N(0, 1) weights, zero biases."""
        for layer in self.layers:
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        normed = self.norm(embeddings)
        out = None
        for index, layer in enumerate(self.layers):
            part = layer(normed[index * self.group : (index + 1) * self.group])
            out = part if out is None else torch.cat((out, part))
        return out


class Generator(nn.Module):
    """Noisy Linears, a Linear stem and upsampling blocks; shallow up to 64 pixels, deep above."""

    def __init__(self, recipe: Any) -> None:
        super().__init__()
        size, wide = recipe.image_size, recipe.generator_width
        self.noise = self.first(recipe)
        shallow, half = size <= 64, wide // 2
        self.start, self.wide = size // (4 if shallow else 16), wide
        self.stem = nn.Linear(self.inputs(recipe), wide * self.start**2)
        deep = [(False, wide), (True, wide), (True, half), (True, half), (True, half)]
        layers: list[nn.Module] = [nn.BatchNorm2d(wide)] if shallow else []
        before = wide
        for upsample, width in [(True, wide), (True, half)] if shallow else deep:
            layers += [nn.Upsample(scale_factor=2)] if upsample else []
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = width
        self.blocks = nn.Sequential(*layers, nn.Conv2d(before, 3, 3, padding=1), nn.Sigmoid())

    def first(self, recipe: Any) -> nn.Module:
        """The layers in front of the stem."""
        sizes = {"batch_size": recipe.synthesis_batch_size, "num_classes": recipe.num_classes}
        return NoisyLinears(recipe.embedding_dim, recipe.noise_features, **sizes)

    def inputs(self, recipe: Any) -> int:
        """Numbers that the stem reads."""
        return recipe.noise_features

    def forward(self, vectors: Tensor) -> Tensor:
        stem = self.stem(self.noise(vectors))
        return self.blocks(stem.view(len(stem), self.wide, self.start, self.start))


class LatentGenerator(Generator):
    """The same blocks on latents instead of noisy layers."""

    def first(self, recipe: Any) -> nn.Module:
        return nn.Identity()

    def inputs(self, recipe: Any) -> int:
        return recipe.latent_dim


def draw_small(layer: nn.Module, mean: float = 0.0) -> None:
    """N(mean, 0.02^2) weights, zero biases."""
    nn.init.normal_(layer.weight, mean, 0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def draw_all_small(generator: nn.Module) -> None:
    """The same for every layer, around 1 for BatchNorms: how CMI begins a round."""
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            draw_small(layer)
        elif isinstance(layer, nn.BatchNorm2d):
            draw_small(layer, 1.0)


class StatisticsHook:
    """How far the input of a BatchNorm is from its running statistics, mixed with the average over the rounds."""

    def __init__(self, layer: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.average: tuple[Tensor, Tensor] | None = None
        layer.register_forward_hook(self.look)

    def look(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Called in every forward pass, whether its result is used or not."""
        channels = inputs[0].shape[1]
        mean = inputs[0].mean([0, 2, 3])
        var = inputs[0].permute(1, 0, 2, 3).contiguous().view(channels, -1).var(1, unbiased=False)
        self.seen = (mean.detach(), var.detach())
        if self.average is not None:
            share = 1 - self.momentum
            mean = share * mean + self.momentum * self.average[0]
            var = share * var + self.momentum * self.average[1]
        self.distance = torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)

    def update(self) -> None:
        """After a round."""
        if self.average is None:
            self.average = self.seen
        else:
            pairs = zip(self.average, self.seen, strict=True)
            self.average = tuple(self.momentum * old + (1 - self.momentum) * new for old, new in pairs)


class FeatureHook:
    """Keeps what the classifier reads and, if asked to, the last feature map: what the last stage or norm made."""

    def __init__(self, model: nn.Module, *, maps: bool = False) -> None:
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        self.weight = linear.weight
        linear.register_forward_pre_hook(self.look_pooled)
        for layer in model.modules() if maps else ():
            if isinstance(layer, nn.Sequential | nn.BatchNorm2d):
                layer.register_forward_hook(self.look_map)

    def look_pooled(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """What the classifier reads."""
        self.pooled = inputs[0]

    def look_map(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """The last one to be called stays."""
        self.last = layer, output

    @property
    def maps(self) -> Tensor:
        """What is pooled: where a norm was last, its ReLU is still to come."""
        layer, output = self.last
        return output.relu() if isinstance(layer, nn.BatchNorm2d) else output
