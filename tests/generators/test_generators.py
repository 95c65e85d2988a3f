"""Generators: published sizes, range, in-place re-initialisation, the noisy layers against a loop of Linears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dfkd_fast.generators.decoder import make_decoder
from dfkd_fast.generators.noisy import NoisyEmbeddingGenerator, NoisyLayer


def nayer_parameters(image_size: int) -> int:
    """BN1d(512) + one noisy Linear(512, 1000) + decoder, as counted for the released code."""
    generator = NoisyEmbeddingGenerator(512, image_size, batch_size=100, num_classes=100)
    return sum(p.numel() for p in generator.parameters())


@pytest.mark.parametrize(("image_size", "millions"), [(32, 8.94), (64, 33.5), (224, 26.1)])
def test_parameter_counts_are_the_released_ones(image_size: int, millions: float) -> None:
    assert round(nayer_parameters(image_size) / 1e6, 2 if millions < 10 else 1) == millions


@pytest.mark.parametrize("image_size", [28, 32, 64, 96, 112])
def test_images_are_in_range_and_of_the_right_size(image_size: int) -> None:
    images = make_decoder(16, image_size)(torch.randn(2, 16))
    assert images.shape == (2, 3, image_size, image_size)
    assert 0 <= images.min() <= images.max() <= 1


def test_low_precision_does_not_cost_pixels() -> None:
    decoder = make_decoder(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoder(torch.randn(2, 16)).dtype == torch.float32


def test_size_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="--image-size 30: choose a multiple of 4"):
        make_decoder(16, 30)


def test_decoder_reset_is_in_place_and_complete() -> None:
    decoder = make_decoder(16, 32)
    addresses = [p.data_ptr() for p in decoder.parameters()]
    decoder(torch.randn(4, 16))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(9.0)
    decoder.reset_parameters()
    assert [p.data_ptr() for p in decoder.parameters()] == addresses
    assert all((p != 9).all() for p in decoder.parameters())
    norm = decoder.layers.norm1
    assert norm.running_mean.abs().sum() == 0
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("batch_size", [6, 7, 9, 2])
def test_noisy_layers_equal_a_loop_of_linears(batch_size: int) -> None:
    """Group i of the batch goes through layer i; the last group may be smaller."""
    torch.manual_seed(0)
    layer = NoisyLayer(5, 4, batch_size=batch_size, group_size=3).double()
    with torch.no_grad():
        layer.bias.normal_()
    embeddings = torch.randn(batch_size, 5, dtype=torch.float64)
    group = min(3, batch_size)
    parts = [
        nn.functional.linear(chunk, layer.weight[i].T, layer.bias[i, 0])
        for i, chunk in enumerate(embeddings.split(group))
    ]
    torch.testing.assert_close(layer(embeddings), torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_noise_is_standard_normal_and_drawn_in_place() -> None:
    torch.manual_seed(0)
    layer = NoisyLayer(64, 64, batch_size=8, group_size=4)
    address, before = layer.weight.data_ptr(), layer.weight.detach().clone()
    layer.reset_parameters()
    assert layer.weight.data_ptr() == address
    assert not torch.equal(layer.weight, before)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.03)
    assert layer.bias.abs().sum() == 0
