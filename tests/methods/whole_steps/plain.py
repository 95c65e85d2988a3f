"""Plain float64 torch to write a method's steps in, apart from the code: the toy networks, losses, optimisers, crops.

Networks are dictionaries of tensors under their modules' names. Nothing here comes from the toolkit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Moments = list[tuple[Tensor, Tensor]]


class Seen(NamedTuple):
    """What a toy network makes of a view."""

    logits: Tensor
    pooled: Tensor
    maps: list[Tensor]
    """behind each convolution's ReLU"""
    moments: Moments
    """mean and biased variance of what each BatchNorm reads"""
    means: Tensor
    """the spatial means of the same, side by side: (B, D)"""


def look(net: State, view: Tensor, *, train: bool = False) -> Seen:
    """Three times convolution, BatchNorm, ReLU; the mean over pixels; a linear classifier."""
    maps, inputs = [view], []
    for layer in (1, 2, 3):
        inputs.append(F.conv2d(maps[-1], net[f"conv{layer}.weight"], stride=min(layer, 2), padding=1))
        maps.append(batch_norm(net, f"bn{layer}", inputs[-1], train=train).clamp(min=0))
    pooled = maps[-1].mean((2, 3))
    moments = [(x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) for x in inputs]
    means = torch.cat([x.mean((2, 3)) for x in inputs], dim=1)
    return Seen(pooled @ net["fc.weight"].T + net["fc.bias"], pooled, maps[1:], moments, means)


def batch_norm(net: State, name: str, x: Tensor, *, train: bool) -> Tensor:
    """By the batch's statistics, which move the running ones by a tenth, the variance unbiased; else by these."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, var = net[f"{name}.running_mean"], net[f"{name}.running_var"]
    if train:
        for running, value in ((mean, x.mean(dims)), (var, x.var(dims, unbiased=True))):
            running.copy_(0.9 * running + 0.1 * value.detach())
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
    normed = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    if f"{name}.weight" not in net:
        return normed
    return normed * net[f"{name}.weight"].view(shape) + net[f"{name}.bias"].view(shape)


def decode(net: State, vectors: Tensor, *, prefix: str = "decoder.", train: bool = True) -> Tensor:
    """The generator of CMI, Fast and NAYER for small images: a linear stem, a BatchNorm, two blocks that double the
    map, a convolution to RGB, a sigmoid.
    """
    return decode_maps(net, start_maps(net, vectors, prefix=prefix, train=train), prefix=prefix, train=train)


def start_maps(net: State, vectors: Tensor, *, prefix: str, train: bool) -> Tensor:
    """Behind the stem's BatchNorm."""
    flat = vectors @ net[f"{prefix}stem.weight"].T + net[f"{prefix}stem.bias"]
    channels = len(net[f"{prefix}layers.norm0.weight"])
    side = round((flat.shape[1] / channels) ** 0.5)
    return batch_norm(net, f"{prefix}layers.norm0", flat.view(len(flat), channels, side, side), train=train)


def block(net: State, x: Tensor, number: int, *, prefix: str, train: bool) -> Tensor:
    """One doubling."""
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.conv2d(doubled, net[f"{prefix}layers.conv{number}.weight"], padding=1)
    x = batch_norm(net, f"{prefix}layers.norm{number}", x, train=train)
    return torch.where(x > 0, x, 0.2 * x)


def decode_maps(net: State, x: Tensor, *, prefix: str, train: bool, after: int = 0) -> Tensor:
    """Images from the maps behind block `after`."""
    for number in (1, 2)[after:]:
        x = block(net, x, number, prefix=prefix, train=train)
    rgb = F.conv2d(x, net[f"{prefix}layers.to_rgb.weight"], net[f"{prefix}layers.to_rgb.bias"], padding=1)
    return 1 / (1 + (-rgb).exp())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each image: (B,)."""
    return logits.logsumexp(1) - logits[torch.arange(len(logits)), labels]


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of each image: (B,)."""
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """1 where both predict the same class: (B,)."""
    return (student.argmax(1) == teacher.argmax(1)).double()


def bn_distance(net: State, moments: Moments, pool: Moments | None = None, momentum: float = 0.9) -> Tensor:
    """sum_l ||mean_l - running mean||_2 + ||var_l - running variance||_2; of a `pool`'s statistics mixed with these
    once there is one.
    """
    total = torch.zeros((), dtype=torch.float64)
    for layer, (mean, var) in enumerate(mixed(moments, pool, momentum), start=1):
        total = total + (net[f"bn{layer}.running_mean"] - mean).square().sum().sqrt()
        total = total + (net[f"bn{layer}.running_var"] - var).square().sum().sqrt()
    return total


def mixed(moments: Moments, pool: Moments | None, momentum: float) -> Moments:
    """momentum x pool + (1 - momentum) x these, or these alone: what the next pool is, too."""
    if pool is None:
        return moments
    return [
        (momentum * old_mean + (1 - momentum) * mean, momentum * old_var + (1 - momentum) * var)
        for (mean, var), (old_mean, old_var) in zip(moments, pool, strict=True)
    ]


def class_map_distance(student: State, own: Seen, teacher: State, other: Seen) -> Tensor:
    """Mean squared difference of all classes' activation maps, without biases; classifiers are constants."""
    mine, wanted = (
        torch.einsum("kd,bdhw->bkhw", net["fc.weight"].detach(), seen.maps[2])
        for net, seen in ((student, own), (teacher, other))
    )
    return (mine - wanted.detach()).square().mean()


def grad_cam_distance(own: Seen, other: Seen, stage: int, *, times_map: bool = False, relu: bool = False) -> Tensor:
    """Mean squared difference of a stage's Grad-CAMs for the class that the teacher predicts. Weights of channels: the
    mean over pixels of the logit's gradient (`times_map`: of gradient x map), constants.
    """
    rows, classes = torch.arange(len(own.logits)), other.logits.argmax(1)
    cams = []
    for seen in (own, other):
        maps = seen.maps[stage]
        (slope,) = torch.autograd.grad(seen.logits[rows, classes].sum(), maps, retain_graph=True)
        share = (slope * maps.detach() if times_map else slope).mean((2, 3))
        cam = (share[:, :, None, None] * maps).sum(1)
        cams.append(cam.clamp(min=0) if relu else cam)
    return (cams[0] - cams[1].detach()).square().mean()


def crop_flip(images: Tensor, shifts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Each image padded by zeros, cut out at its own place, and mirrored where asked for."""
    side = images.shape[-1]
    padded = F.pad(images, (pad,) * 4)
    cut = [
        image[:, pad + row : pad + row + side, pad + column : pad + column + side]
        for image, (row, column) in zip(padded, shifts.tolist(), strict=True)
    ]
    return torch.stack([image.flip(2) if flip else image for image, flip in zip(cut, flips.tolist(), strict=True)])


def gradients(loss: Tensor, net: State, names: Iterable[str]) -> State:
    """d(loss) / d(tensor) for these of a network."""
    names = list(names)
    found = torch.autograd.grad(loss, [net[name] for name in names], retain_graph=True)
    return dict(zip(names, found, strict=True))


class Adam:
    """Kingma and Ba, algorithm 1; `decay` takes lr x decay of a weight away in each step (AdamW)."""

    def __init__(self, betas: tuple[float, float] = (0.5, 0.999), decay: float = 0.0) -> None:
        self.betas, self.decay, self.steps = betas, decay, 0
        self.mean: State = {}
        self.square: State = {}

    @torch.no_grad()
    def step(self, net: State, grads: State, lr: float | Mapping[str, float]) -> None:
        self.steps += 1
        b1, b2 = self.betas
        for name, g in grads.items():
            self.mean[name] = b1 * self.mean.get(name, torch.zeros_like(g)) + (1 - b1) * g
            self.square[name] = b2 * self.square.get(name, torch.zeros_like(g)) + (1 - b2) * g**2
            mean, square = self.mean[name] / (1 - b1**self.steps), self.square[name] / (1 - b2**self.steps)
            rate = lr if isinstance(lr, float) else lr[name]
            net[name].copy_(net[name] * (1 - rate * self.decay) - rate * mean / (square.sqrt() + 1e-8))


class Sgd:
    """v <- momentum v + (g + decay w), w <- w - lr v."""

    def __init__(self, momentum: float = 0.9, decay: float = 1e-4) -> None:
        self.momentum, self.decay = momentum, decay
        self.velocity: State = {}

    @torch.no_grad()
    def step(self, net: State, grads: State, lr: float | Mapping[str, float]) -> None:
        for name, g in grads.items():
            rate = lr if isinstance(lr, float) else lr[name]
            before = self.velocity.get(name, torch.zeros_like(g))
            self.velocity[name] = self.momentum * before + g + self.decay * net[name]
            net[name].sub_(rate * self.velocity[name])


def cosine_lr(epoch: int, *, first: int, last: int, high: float, low: float) -> float:
    """torch's CosineAnnealingLR over the epochs first..last-1."""
    return low + (high - low) * (1 + math.cos(math.pi * (epoch - first) / (last - first))) / 2
