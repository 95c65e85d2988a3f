"""SpaceshipNet's generator goes on from its own maps; its exchange of channels against the loop that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dfkd_fast.generators.feature_decoder import CUTS, FeatureDecoder, exchange_channels
from dfkd_fast.generators.layers import kaiming_init


def decoder(size: int = 32, width: int = 16) -> FeatureDecoder:
    torch.manual_seed(0)
    return FeatureDecoder(7, size, width=width).double()


@pytest.mark.parametrize("size", [32, 80])
def test_decoding_its_own_maps_gives_the_same_images(size: int) -> None:
    """At rest: statistics of a batch would need the whole batch's maps, which is the same here, but not in the pool."""
    generator = decoder(size, 4)
    latents = torch.randn(5, 7, dtype=torch.float64)
    generator(latents)
    generator.eval()
    images, seen = generator(latents)
    assert images.shape == (5, 3, size, size)
    for cut, maps in zip(CUTS, seen, strict=True):
        torch.testing.assert_close(generator.decode(maps, cut), images, rtol=1e-12, atol=1e-12)
        halves = generator.decode(maps.half(), cut)
        assert halves.dtype == torch.float64
        assert 0 < (halves - images).abs().max() < 1e-2
    assert generator.state_dict().keys() == {f"decoder.{name}" for name in generator.decoder.state_dict()}


def test_the_maps_are_the_releases() -> None:
    generator = FeatureDecoder(256, 32)
    _, seen = generator(torch.randn(2, 256))
    shapes = [tuple(maps.shape[1:]) for maps in seen]
    assert shapes == [(128, 8, 8), (128, 16, 16), (64, 32, 32)]
    assert sum(maps[0].numel() for maps in seen) == 106_496
    assert generator.shapes == shapes


def naive_exchange(maps: Tensor, own: list[set[int]]) -> Tensor:
    """Sample by sample and channel by channel, as the release does."""
    mixed = maps.clone()
    for i in range(len(maps)):
        for channel in range(maps.shape[1]):
            if channel not in own[i]:
                mixed[i, channel] = maps[len(maps) - 1 - i, channel]
    return mixed


@pytest.mark.parametrize(("count", "channels"), [(6, 8), (5, 7)])
def test_exchange_is_the_loop(count: int, channels: int) -> None:
    """With the channels that the draw has left alone; they are half of all, another half for each sample and draw."""
    torch.manual_seed(0)
    maps = torch.randn(count, channels, 2, 3, dtype=torch.float64, requires_grad=True)
    seen = []
    for _ in range(4):
        found = exchange_channels(maps, 1.0)
        kept = (found == maps).all(dim=(2, 3))
        own = [set(row.nonzero().flatten().tolist()) for row in kept]
        assert torch.equal(found, naive_exchange(maps, own))
        assert all(len(own[i]) == channels // 2 for i in range(count) if 2 * i != count - 1)
        probe = torch.randn_like(found)
        gradients = [torch.autograd.grad(out, maps, probe)[0] for out in (found, naive_exchange(maps, own))]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
        seen += [frozenset(channels) for channels in own]
    assert len(set(seen)) > count


def test_exchange_is_drawn_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    maps = torch.randn(4, 6, 1, 1)
    whole = [torch.equal(exchange_channels(maps, 0.7), maps) for _ in range(400)]
    assert 0.2 < sum(whole) / 400 < 0.4
    assert all(torch.equal(exchange_channels(maps, 0.0), maps) for _ in range(20))
    assert not any(torch.equal(exchange_channels(maps, 1.0), maps) for _ in range(20))


def test_kaiming_init() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(400, 300))
    places = [value.data_ptr() for value in net.parameters()]
    kaiming_init(net)
    assert places == [value.data_ptr() for value in net.parameters()]
    for layer, fan_in in ((net[0], 32 * 9), (net[3], 400)):
        assert abs(layer.weight.std().item() / (2 / fan_in) ** 0.5 - 1) < 0.05
        assert layer.bias.abs().max() == 0
    assert 0.01 < net[1].weight.std() < 0.03
    assert abs(net[1].weight.mean() - 1) < 0.01
    assert net[1].bias.abs().max() == 0
