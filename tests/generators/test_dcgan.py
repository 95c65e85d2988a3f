"""The DCGAN generator and MSARC's attention, against the paper's equations written pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.errors import UserError
from dfkd_fast.generators.dcgan import DcganDecoder, SpatialAttention


def naive_pool(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each 2x2 window, and a map that is 1 where it stood."""
    pooled = torch.zeros(*maps.shape[:2], maps.shape[2] // 2, maps.shape[3] // 2, dtype=maps.dtype)
    mask = torch.zeros_like(maps)
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(size) for size in pooled.shape)).tolist():
        window = maps[b, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        row, column = divmod(int(window.argmax()), 2)
        pooled[b, c, y, x] = window[row, column]
        mask[b, c, 2 * y + row, 2 * x + column] = 1
    return pooled, mask


def naive_attention(module: SpatialAttention, maps: Tensor) -> Tensor:
    """Eqs. 4 to 6, unpooling by a mask, the transposed 3x3 as a convolution with the turned kernel."""

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (var + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    def turned(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
        return F.conv2d(x, layer.weight.transpose(0, 1).flip(2, 3), padding=1)

    psi = norm(F.conv2d(module.squeeze(maps), module.encode[0].weight, padding=1), module.encode[1]).clamp(min=0)
    pooled, mask = naive_pool(psi)
    gamma = norm(F.conv2d(pooled, module.core[0].weight, padding=1), module.core[1]).clamp(min=0)
    small = norm(turned(gamma, module.core[3]), module.core[4]).clamp(min=0)
    unpooled = small.repeat_interleave(2, 2).repeat_interleave(2, 3) * mask
    scores = module.decode[3](norm(turned(unpooled, module.decode[0]), module.decode[1]).clamp(min=0))
    weights = scores.exp() / scores.exp().sum((2, 3), keepdim=True)
    gain = scores.shape[2] * scores.shape[3] if module.gain == "hw" else 1
    return module.scale * gain * weights * maps + maps


@pytest.mark.parametrize("gain", ["hw", "none"])
def test_attention_is_the_papers(gain: str) -> None:
    torch.manual_seed(0)
    module = SpatialAttention(8, scale=0.3, gain=gain).double()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias)
    maps = torch.randn(3, 8, 4, 6, dtype=torch.float64, requires_grad=True)
    found, expected = module(maps), naive_attention(module, maps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    inputs = [maps, *module.parameters()]
    probe = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, inputs, probe), torch.autograd.grad(expected, inputs, probe), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gain_makes_the_attention_one_on_average() -> None:
    torch.manual_seed(0)
    maps = torch.ones(2, 4, 8, 8)
    added = SpatialAttention(4, scale=0.5)(maps) - maps
    torch.testing.assert_close(added.mean((2, 3)), torch.full((2, 4), 0.5))
    assert SpatialAttention(4, scale=0.5, gain="none").eval()(maps).sub(maps).mean() < 0.01


def reference_dcgan(size: int, width: int) -> nn.Sequential:
    """methods that papers compare with: stem, BN, four transposed convolutions, 3x3, sigmoid."""
    layers: list[nn.Module] = [
        nn.Linear(7, width * (size // 16) ** 2),
        nn.Unflatten(1, (width, size // 16, size // 16)),
    ]
    layers.append(nn.BatchNorm2d(width))
    channels = width
    for out in (width // 2, width // 4, width // 8, width // 8):
        layers += [nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, 1, 1), nn.Sigmoid())


def test_plain_dcgan() -> None:
    torch.manual_seed(0)
    ours, theirs = DcganDecoder(7, 32, width=16).double(), reference_dcgan(32, 16).double()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.shape == other.shape
        other.data.copy_(own)
    vectors = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(vectors), theirs(vectors), rtol=1e-9, atol=1e-9)
    full = DcganDecoder(256, 32)
    assert [block[0].out_channels for block in full.blocks] == [256, 128, 64, 64]


def test_attention_stands_behind_every_block() -> None:
    torch.manual_seed(0)
    decoder = DcganDecoder(6, 32, width=16, attention=0.03)
    assert [[type(layer) for layer in block][-1] for block in decoder.blocks] == [SpatialAttention] * 4
    images = decoder(torch.randn(3, 6))
    assert images.shape == (3, 3, 32, 32)
    assert 0 < images.min() < images.max() < 1
    images.sum().backward()
    assert all(weight.grad is not None for weight in decoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(torch.randn(3, 6)).dtype == torch.float32


def test_spectral_norm_divides_every_convolution() -> None:
    torch.manual_seed(0)
    decoder = DcganDecoder(6, 32, width=16, attention=0.03, spectral=True)
    for _ in range(20):
        decoder(torch.randn(3, 6))
    convolutions = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 4 * 7 + 1
    for layer in convolutions:
        # torch takes the output's channels as rows
        rows = layer.weight.detach().transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight.detach()
        assert math.isclose(torch.linalg.matrix_norm(rows.flatten(1), ord=2).item(), 1, rel_tol=0.05)


@pytest.mark.parametrize("spectral", [False, True])
def test_resets_in_place(spectral: bool) -> None:
    torch.manual_seed(0)
    decoder = DcganDecoder(6, 16, width=8, attention=0.03, spectral=spectral)
    decoder(torch.randn(3, 6))
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    places = [value.data_ptr() for value in (*decoder.parameters(), *decoder.buffers())]
    torch.manual_seed(0)
    decoder.reset_parameters()
    assert places == [value.data_ptr() for value in (*decoder.parameters(), *decoder.buffers())]
    torch.manual_seed(0)
    fresh = DcganDecoder(6, 16, width=8, attention=0.03, spectral=spectral).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in decoder.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    decoder.reset_first_layers()
    assert decoder.stem.weight.std() < 0.03
    assert decoder.stem_norm.weight.abs().max() < 0.2


def test_wrong_size() -> None:
    with pytest.raises(UserError, match=r"^--image-size 28: choose a multiple of 16"):
        DcganDecoder(6, 28)
