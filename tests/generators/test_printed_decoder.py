"""NAYER's decoder as printed, against torch's own layers put together from tables 8 and 9, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from dfkd_fast.errors import UserError
from dfkd_fast.generators.noisy import NoisyEmbeddingGenerator
from dfkd_fast.generators.printed_decoder import PrintedDecoder

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Maps(nn.Module):
    """Rows as maps of 8 channels: the table's "Reshape"."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), 8, self.size, self.size)


def convolution(before: int, after: int, *, bias: bool = False) -> nn.Module:
    return spectral_norm(nn.Conv2d(before, after, 3, padding=1, bias=bias))


def table(image_size: int, blocks: list[tuple[int, int]]) -> nn.Sequential:
    """The rows of a table, in their order, for 6 inputs and 8 in place of 128 channels."""
    start = image_size // 2 ** len(blocks)
    layers: list[nn.Module] = [nn.Linear(6, 8 * start**2), nn.BatchNorm1d(8 * start**2), Maps(start)]
    for before, after in blocks:
        layers += [convolution(before, after), nn.BatchNorm2d(after), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2)]
    return nn.Sequential(*layers, convolution(4, 3, bias=True), nn.Sigmoid(), nn.BatchNorm2d(3)).double()


CASES = {
    16: [(8, 8), (8, 4)],  # table 8: 128 and 64 channels on maps of h/4 and h/2
    64: [(8, 8), (8, 4)],
    96: [(8, 8), (8, 8), (8, 4), (4, 4)],  # table 9: 128, 128, 64 and 64 from h/16 on
}


def learning(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters in the order of the layers; within a layer bias first, so that spectral norm changes no order."""
    return [
        (f"{kind.__name__} {name.removesuffix('_orig')}", value)
        for layer in module.modules()
        for kind in (nn.Linear, nn.BatchNorm1d, nn.Conv2d, nn.BatchNorm2d)
        if isinstance(layer, kind)
        for name, value in sorted(layer.named_parameters(recurse=False))
    ]


def in_forward_order(decoder: PrintedDecoder) -> list[nn.Module]:
    blocks = [layer for pair in zip(decoder.convs, decoder.norms, strict=True) for layer in pair]
    return [decoder.stem, decoder.stem_norm, *blocks, decoder.to_rgb, decoder.image_norm]


@pytest.mark.parametrize("image_size", CASES)
def test_it_is_the_printed_table(image_size: int) -> None:
    """Images and all gradients over three forward passes, in each of which a power iteration goes on."""
    torch.manual_seed(image_size)
    printed = table(image_size, CASES[image_size]).train()
    ours = PrintedDecoder(6, image_size, width=8, mean=MEAN, std=STD).double().train()
    theirs = learning(printed)
    mine = [pair for layer in in_forward_order(ours) for pair in learning(layer)]
    assert [(name, value.shape) for name, value in mine] == [(name, value.shape) for name, value in theirs]
    with torch.no_grad():
        for (_, target), (_, source) in zip(mine, theirs, strict=True):
            target.copy_(source)
        spectral = [layer for layer in printed if hasattr(layer, "weight_u")]
        for layer, other in zip([*ours.convs, ours.to_rgb], spectral, strict=True):
            layer.left.copy_(other.weight_u)
    mean, std = (torch.tensor(values).double().view(-1, 1, 1) for values in (MEAN, STD))
    for _ in range(3):
        rows = torch.randn(5, 6, dtype=torch.float64)
        found, wanted = ours(rows), printed(rows) * std + mean
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        slopes = torch.randn_like(found)
        got = torch.autograd.grad((found * slopes).sum(), [value for _, value in mine])
        expected = torch.autograd.grad((wanted * slopes).sum(), [value for _, value in theirs])
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_images_have_the_datas_mean_and_spread() -> None:
    images = PrintedDecoder(6, 32, width=8, mean=MEAN, std=STD)(torch.randn(20, 6))
    assert images.shape == (20, 3, 32, 32)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(MEAN), rtol=1e-4, atol=1e-4)
    assert ((images.std((0, 2, 3)) / torch.tensor(STD) - 1).abs() < 0.3).all()  # the sigmoid's spread is small at first


def test_parameter_counts() -> None:
    """Table 8 for CIFAR: the stem of 1000 x 128 x 8 x 8 with its BN, and convolutions of 128, 64 and 3 channels."""
    decoder = PrintedDecoder(1000, 32, mean=MEAN, std=STD)
    stem = 1000 * 8192 + 8192 + 2 * 8192
    convs = 9 * (128 * 128 + 128 * 64 + 64 * 3) + 3 + 2 * (128 + 64 + 3)
    assert sum(value.numel() for value in decoder.parameters()) == stem + convs


def test_reset_is_in_place_and_complete() -> None:
    decoder = PrintedDecoder(6, 16, width=8, mean=MEAN, std=STD)
    tensors = [*decoder.parameters(), *(layer.left for layer in (*decoder.convs, decoder.to_rgb))]
    addresses = [value.data_ptr() for value in tensors]
    with torch.no_grad():
        for value in tensors:
            value.fill_(9.0)
    decoder.reset_parameters()
    assert [value.data_ptr() for value in tensors] == addresses
    assert all((value != 9).all() for value in tensors)
    torch.testing.assert_close(decoder.to_rgb.left.norm(), torch.tensor(1.0))


def test_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="--image-size 100: choose a multiple of 16"):
        PrintedDecoder(6, 100, mean=MEAN, std=STD)


def test_nayers_generator_takes_it() -> None:
    decoder = PrintedDecoder(12, 16, width=8, mean=MEAN, std=STD)
    generator = NoisyEmbeddingGenerator(8, 16, batch_size=6, num_classes=4, noise_features=12, decoder=decoder)
    assert generator(torch.randn(6, 8)).shape == (6, 3, 16, 16)
    generator.reset_parameters()
