"""Generators with learnable latents: shapes, published sizes, in-place re-initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfkd_fast.generators.decoder import make_decoder, make_spatial_decoder
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.layers import UpsampleConv2d


@pytest.mark.parametrize(("image_size", "spatial", "shape"), [(32, False, (2, 256)), (96, True, (2, 256, 6, 6))])
def test_shapes_and_range(image_size: int, spatial: bool, shape: tuple[int, ...]) -> None:
    generator = LatentGenerator(2, 256, image_size, spatial=spatial)
    assert generator.latents.shape == shape
    images = generator()
    assert images.shape == (2, 3, image_size, image_size)
    assert 0 <= images.min() <= images.max() <= 1


def test_spatial_decoder_has_the_released_layers() -> None:
    """Convolutions 256-128-128-64-64-64-3, the first at 14 px, four upsamplings to 224."""
    layers = make_spatial_decoder(256, 224).layers
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [
        *((256, 128), (128, 128), (128, 64), (64, 64), (64, 64), (64, 3))
    ]
    assert sum(isinstance(layer, UpsampleConv2d) for layer in layers) == 4
    assert isinstance(layers[0], nn.Conv2d)


def test_reset_and_draw_are_in_place() -> None:
    generator = LatentGenerator(2, 8, 32)
    addresses = [p.data_ptr() for p in generator.parameters()]
    weights, latents = generator.decoder.stem.weight.detach().clone(), generator.latents.detach().clone()
    generator.draw_latents()
    assert torch.equal(generator.decoder.stem.weight, weights)
    assert not torch.equal(generator.latents, latents)
    generator.reset_parameters()
    assert not torch.equal(generator.decoder.stem.weight, weights)
    assert [p.data_ptr() for p in generator.parameters()] == addresses


def test_reset_first_layers_touches_those_alone() -> None:
    torch.manual_seed(0)
    decoder = make_decoder(64, 32)
    before = {name: value.detach().clone() for name, value in decoder.named_parameters()}
    decoder.reset_first_layers()
    changed = {name for name, value in decoder.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"stem.weight", "stem.bias", "layers.norm0.weight"}  # the BN's bias was 0 before
    assert decoder.stem.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert decoder.layers.norm0.weight.abs().max() < 0.1
    assert decoder.stem.bias.abs().sum() == 0


def test_first_layers_of_a_deep_decoder_are_its_stem() -> None:
    torch.manual_seed(0)
    decoder = make_decoder(8, 96, width=4)
    before = {name: value.detach().clone() for name, value in decoder.named_parameters()}
    decoder.reset_first_layers()
    changed = {name for name, value in decoder.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"stem.weight", "stem.bias"}
    assert decoder.stem.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_spatial_decoder_size_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="--image-size 100: choose a multiple of 16"):
        make_spatial_decoder(8, 100)
