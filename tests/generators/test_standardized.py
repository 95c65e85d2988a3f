"""The originals' end of a generator: the same as by hand in float64, and what it promises of its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfkd_fast.generators.decoder import StandardizedDecoder, make_large_decoder, with_output

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def make(*, tanh: bool) -> StandardizedDecoder:
    torch.manual_seed(0)
    return StandardizedDecoder(make_large_decoder(8, 16, width=16), MEAN, STD, tanh=tanh)


def by_hand(model: StandardizedDecoder, vectors: Tensor) -> Tensor:
    """In training mode."""
    decoder = model.decoder
    values = decoder.layers(decoder.stem(vectors).view(-1, 16, 4, 4))
    values = values.tanh() if model.tanh else values
    centred = values - values.mean((0, 2, 3), keepdim=True)
    standard = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    mean, std = (torch.tensor(value, dtype=values.dtype).view(3, 1, 1) for value in (MEAN, STD))
    return standard * std.float().double() + mean.float().double()


@pytest.mark.parametrize("tanh", [False, True])
def test_equals_the_plain_form(tanh: bool) -> None:
    model = make(tanh=tanh).double()
    vectors, weight = torch.randn(6, 8).double(), torch.randn(6, 3, 16, 16).double()
    found, wanted = model(vectors), by_hand(model, vectors)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad((images * weight).sum(), parameters) for images in (found, wanted)]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-10)


def test_mean_and_spread_are_the_datas() -> None:
    """Whatever the last convolution gives, almost blank images included."""
    model = make(tanh=False)
    model.decoder.layers.get_parameter("to_rgb.bias").data.fill_(50.0)
    images = model(torch.randn(64, 8))
    assert images.shape == (64, 3, 16, 16)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(MEAN), rtol=0, atol=1e-3)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.tensor(STD), rtol=0.02, atol=0)


def test_evaluation_mode_takes_the_running_statistics() -> None:
    """An image alone is the one that it is in a batch, and by hand."""
    model = make(tanh=False).double()
    for _ in range(5):
        model(torch.randn(64, 8).double())
    model.eval()
    vectors = torch.randn(4, 8).double()
    images = model(vectors)
    torch.testing.assert_close(model(vectors[:1]), images[:1], rtol=1e-10, atol=1e-12)
    mean, var = (value.view(3, 1, 1) for value in (model.norm.running_mean, model.norm.running_var))
    expected = (model.decoder.logits(vectors) - mean) / (var + 1e-5).sqrt() * model.std + model.mean
    torch.testing.assert_close(images, expected, rtol=1e-10, atol=1e-12)


def test_low_precision_does_not_cost_pixels() -> None:
    """They are standardised in float32: far more values than bfloat16 has between 0 and 1."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = make(tanh=True)
        vectors = torch.randn(2, 8)
        assert model.decoder.logits(vectors).dtype == torch.float32
        assert model(vectors).dtype == torch.float32


def test_sigmoid_is_the_decoder_itself() -> None:
    decoder = make_large_decoder(8, 16, width=16)
    assert with_output(decoder, "sigmoid", mean=MEAN, std=STD) is decoder
