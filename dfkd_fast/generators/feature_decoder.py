"""A decoder that shows the maps on its way to an image, and goes on from such maps: SpaceshipNet's generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.generators.decoder import Decoder, decode, make_decoder
from dfkd_fast.generators.layers import UpsampleConv2d
from dfkd_fast.models.teacher import unregistered

CUTS = (0, 1, 2)
"""where maps are taken: in front of the first block, behind the first, behind the second"""


class FeatureDecoder(nn.Module):
    """Latents (B, latent_dim) -> images (B, in_chans, H, W) in [0, 1]; or from the maps at one of `CUTS` to images.

    At 32 px and width 128 the maps are (B, 128, 8, 8) behind the stem's BN, (B, 128, 16, 16) and (B, 64, 32, 32). The
    generator of CMI's and SpaceshipNet's releases (Yu et al., CVPR 2023).
    """

    def __init__(self, latent_dim: int, image_size: Size, *, width: int = 128, in_chans: int = 3) -> None:
        super().__init__()
        self.decoder: Decoder = make_decoder(latent_dim, image_size, width=width, in_chans=in_chans)
        layers, starts = self.decoder.layers, self.decoder.block_starts[: len(CUTS)]
        # slices of the decoder's layers, which it registers
        self._parts = unregistered(*(layers[a:b] for a, b in zip([0, *starts], starts, strict=False)))
        self._rests: tuple[nn.Sequential, ...] = unregistered(
            *(layers[start:] for start in starts)  # type: ignore[arg-type]
        )
        self.shapes = self._shapes()
        """of one image's maps at each cut: (C, h, w)"""

    def forward(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images, and the maps at each cut, without gradients."""
        maps, seen = self.decoder.start(latents), []
        for part in self._parts:
            maps = part(maps)
            seen.append(maps.detach())
        return decode(self._rests[-1], maps), tuple(seen)

    def decode(self, maps: Tensor, cut: int) -> Tensor:
        """Images from maps at a cut, by what comes behind it."""
        return decode(self._rests[cut], maps.to(self.decoder.stem.weight.dtype))

    def _shapes(self) -> list[tuple[int, ...]]:
        size, channels = self.decoder.start_size, self.decoder.stem_channels
        shapes: list[tuple[int, ...]] = []
        for start in self.decoder.block_starts[: len(CUTS)]:
            shapes.append((channels, *size))
            block = self.decoder.layers[start]
            if isinstance(block, UpsampleConv2d):
                size = ImageSize(2 * size.height, 2 * size.width)
            channels = getattr(block, "out_channels", channels)
        return shapes


def exchange_channels(maps: Tensor, probability: float) -> Tensor:
    """Swap a random half of each sample's channels for those of its partner, with `probability` for the whole batch.

    Maps (B, C, h, w) -> the same shape; sample i's partner is B - 1 - i, and floor(C / 2) of its own channels stay.
    SpaceshipNet's channel-wise feature exchange, which pairs a batch so. All draws are made on the device.
    """
    count, channels = maps.shape[:2]
    order = torch.rand(count, channels, device=maps.device).argsort(dim=1).argsort(dim=1)
    is_whole = torch.rand((), device=maps.device) >= probability
    own = (order < channels // 2) | is_whole
    return torch.where(own[:, :, None, None], maps, maps.flip(0))
