"""The BigGAN-like pair: shapes, spectral norms, what is not built; and that its short cuts change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dfkd_fast.errors import UserError
from dfkd_fast.generators.layers import SpectralConv2d, SpectralLinear
from dfkd_fast.methods.hidfd.biggan import BigDiscriminator, BigGenerator, DownBlock, UpBlock


@pytest.mark.parametrize("size", [16, 28, 32, 48, 64, 224])
def test_shapes(size: int) -> None:
    generator = BigGenerator(8, 5, size, width=1)
    discriminator = BigDiscriminator(5, size, width=1, feature_dim=7)
    images = generator(torch.randn(2, 8), torch.tensor([0, 4]))
    assert images.shape == (2, 3, size, size)
    assert 0 <= images.min() <= images.max() <= 1
    judged = discriminator(images)
    assert (judged.scores.shape, judged.classes.shape, judged.features.shape) == ((2,), (2, 10), (2, 7))


def test_sizes_that_cannot_be() -> None:
    for size in (9, 30, 512):
        with pytest.raises(UserError, match=rf"^--image-size {size}: choose 4 to 7 pixels times a power of 2"):
            BigGenerator(8, 5, size)


def test_only_the_heads_that_are_asked_for_are_built() -> None:
    names = {name.partition(".")[0] for name, _ in BigDiscriminator(5, 32, width=1).named_parameters()}
    assert names == {"blocks", "score", "classes"}
    assert BigDiscriminator(5, 32, width=1)(torch.rand(2, 3, 32, 32)).features is None


def test_the_shape_for_cifar() -> None:
    """256 channels in 3 and 4 blocks, as in the release."""
    generator, discriminator = BigGenerator(128, 10, 32), BigDiscriminator(10, 32, feature_dim=512)
    assert generator.stem.weight.shape == (256 * 16, 128)
    assert [block.conv2.weight.shape[:2] for block in generator.blocks] == [(256, 256)] * 3
    assert [block.halves for block in discriminator.blocks] == [True, True, False, False]
    assert [layer.weight.shape for layer in discriminator.features] == [(1024, 256), (512, 1024)]
    large = BigDiscriminator(10, 64, width=1, feature_dim=512).features
    assert [layer.weight.shape for layer in large] == [(1024, 16), (512, 1024)]
    assert all(isinstance(layer, SpectralLinear) for layer in (*discriminator.features, *large))
    assert discriminator.classes.weight.shape == (20, 256)


@pytest.mark.parametrize("layer", [SpectralLinear(6, 9), SpectralConv2d(3, 8, 3, padding=1)], ids=["linear", "conv"])
def test_the_weight_gets_spectral_norm_1(layer: nn.Module) -> None:
    """After enough passes in training; a pass in evaluation changes nothing. As torch's own, gradient included."""
    torch.manual_seed(0)
    layer.reset_parameters()
    inputs = torch.randn(4, 6) if isinstance(layer, SpectralLinear) else torch.randn(4, 3, 5, 5)
    for _ in range(200):
        layer(inputs)
    layer.eval()
    before = layer.left.clone()
    out = layer(inputs)
    assert torch.equal(layer.left, before)
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
    exact = layer.weight / largest
    plain = F.linear(inputs, exact, layer.bias) if inputs.dim() == 2 else F.conv2d(inputs, exact, layer.bias, padding=1)
    torch.testing.assert_close(out, plain)
    (ours,) = torch.autograd.grad(out.square().sum(), layer.weight)
    (theirs,) = torch.autograd.grad(plain.square().sum(), layer.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_one_pass_is_one_power_iteration() -> None:
    layer = SpectralLinear(6, 9)
    left = layer.left.clone()
    layer(torch.randn(2, 6))
    right = F.normalize(left @ layer.weight, dim=0)
    torch.testing.assert_close(layer.left, F.normalize(layer.weight @ right, dim=0))


def test_shortcuts_before_or_after_changing_the_size_are_the_same() -> None:
    torch.manual_seed(0)
    maps, labels = torch.randn(2, 4, 6, 6), torch.tensor([1, 0])
    up = UpBlock(4, 3, 2).eval()
    inner = F.interpolate(F.relu(up.norm1(maps, labels)), scale_factor=2)
    expected = up.conv2(F.relu(up.norm2(up.conv1(inner), labels))) + up.shortcut(F.interpolate(maps, scale_factor=2))
    torch.testing.assert_close(up(maps, labels), expected)
    down = DownBlock(4, 3, halves=True, first=False).eval()
    expected = F.avg_pool2d(down.conv2(F.relu(down.conv1(F.relu(maps)))) + down.shortcut(maps), 2)
    torch.testing.assert_close(down(maps), expected)


def test_class_norms_begin_near_plain_ones() -> None:
    norm = UpBlock(4, 4, 3).norm1
    nn.init.zeros_(norm.gain.weight)
    nn.init.zeros_(norm.bias.weight)
    maps = torch.randn(5, 4, 6, 6)
    expected = F.batch_norm(maps, None, None, training=True)
    torch.testing.assert_close(norm(maps, torch.tensor([0, 1, 2, 0, 1])), expected)
    nn.init.constant_(norm.gain.weight, 1.0)
    torch.testing.assert_close(norm(maps, torch.tensor([0, 1, 2, 0, 1])), 2 * expected)
