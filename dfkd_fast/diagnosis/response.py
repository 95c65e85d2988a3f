"""A network's answers to images that are no data: how far its BatchNorm inputs lie from what it saw in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.procedural.pictures import draw_pictures
from dfkd_kernels import Moments, bn_stat_loss

STEPS = 20
"""of a small generator, whose images are what synthesis starts from"""
_LATENTS, _WIDTH, _RATE = 128, 32, 5e-3


class Distance(NamedTuple):
    """How far one BatchNorm's input is from its running statistics."""

    layer: str
    noise: float
    """||mean - running mean|| + ||variance - running variance|| on uniform noise: the layer's term of the loss"""
    pictures: float
    """the same on procedural pictures"""
    generated: float
    """the same after `STEPS` steps of a generator"""


class Response(NamedTuple):
    """What a network does with images that are no data."""

    layers: tuple[Distance, ...]
    label_loss: tuple[float, float]
    """cross-entropy with the classes asked for: at the generator's first step and after its last"""
    spread: float | None
    """median over the first BatchNorm's channels of the variance on procedural pictures / running variance; None
    without BatchNorm
    """
    confidence: float
    """mean probability of the predicted class on procedural pictures"""
    classes: int
    """how many classes those are put into"""
    forward_seconds: float
    """processor seconds of one image, forward"""
    gradient_seconds: float
    """the same, forward and the gradient of the image"""

    @property
    def totals(self) -> tuple[float, float, float]:
        """The loss on noise, on pictures and after the generator's steps, summed over layers."""
        return (
            sum(each.noise for each in self.layers),
            sum(each.pictures for each in self.layers),
            sum(each.generated for each in self.layers),
        )


def respond(net: FrozenNet, runtime: Runtime, *, batch: int, seed: int = 0) -> Response:
    """Try a frozen network on noise, procedural pictures and what a generator makes in `STEPS` steps."""
    info, device = net.info, runtime.device
    rng = torch.Generator(device).manual_seed(seed)
    noise = torch.rand(batch, *info.shape, generator=rng, device=device)
    pictures = draw_pictures(batch, info.shape, generator=rng)
    on_noise = _distances(net, noise)  # the first calls prepare what later ones find
    net.logits(_view(noise, info))
    start = time.process_time()
    _distances(net, noise)
    middle = time.process_time()
    net.logits(_view(noise, info))
    forward, with_gradient = time.process_time() - middle, middle - start
    with torch.no_grad():
        out = net(_view(pictures, info))
    probability, predicted = out.logits.float().softmax(1).max(1)
    images, losses = _generated(net, device, batch, seed)
    names = [name.removesuffix(":input") for name in net.norm_inputs]
    columns = (on_noise, _terms(net, out.moments), _distances(net, images))
    return Response(
        tuple(Distance(name, *terms) for name, *terms in zip(names, *columns, strict=True)),
        losses,
        _spread(out.moments, net.targets),
        float(probability.mean()),
        len(predicted.unique()),
        forward / batch,
        with_gradient / batch,
    )


def _view(images: Tensor, info: ModelInfo) -> Tensor:
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    return (images - mean) / std


@torch.no_grad()
def _terms(net: FrozenNet, moments: Sequence[Moments]) -> list[float]:
    return [float(bn_stat_loss([found], [target])) for found, target in zip(moments, net.targets, strict=True)]


def _distances(net: FrozenNet, images: Tensor) -> list[float]:
    """The loss's terms on images; with the gradient of the images, since that is what synthesis takes."""
    leaf = images.detach().requires_grad_()
    out = net(_view(leaf, net.info))
    loss = bn_stat_loss(out.moments, net.targets) if out.moments else out.logits.float().square().mean()
    torch.autograd.grad(loss, leaf)
    return _terms(net, out.moments)


def _spread(moments: Sequence[Moments], targets: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    if not moments:
        return None
    return float((moments[0].var().detach() / targets[0][1].clamp(min=1e-12)).median())


def _generated(net: FrozenNet, device: torch.device, batch: int, seed: int) -> tuple[Tensor, tuple[float, float]]:
    """Images of a generator after `STEPS` steps on BatchNorm loss and labels, and the label loss at both ends."""
    info = net.info
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = LatentGenerator(batch, _LATENTS, info.image_size, width=_WIDTH, in_chans=info.in_chans)
    generator = generator.to(device)
    labels = torch.arange(batch, device=device) % info.num_classes
    optimizer = torch.optim.Adam(generator.parameters(), lr=_RATE)
    losses = []
    for _ in range(STEPS):
        out = net(_view(generator(), info))
        label_loss = label_ce(out.logits, labels)
        loss = label_loss + (10 * bn_stat_loss(out.moments, net.targets) / len(out.moments) if out.moments else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(label_loss.detach()))
    with torch.no_grad():
        return generator(), (losses[0], losses[-1])
