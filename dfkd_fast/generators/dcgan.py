"""The DCGAN generator, plain or with MSARC's attention behind every block."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from dfkd_fast.config.image_size import Size
from dfkd_fast.generators.layers import at_least_float32, draw_small, in_format_of, undoubled

SoftmaxGain = Literal["hw", "none"]


class SpatialAttention(nn.Module):
    """F + scale x softmax(A(F)) x F, A one number for each pixel: maps (B, C, H, W) -> the same, H and W even.

    MSARC (Liang et al., Scientific Reports 2024), Eqs. 4 to 6: an encoder with max-pooling and a decoder with
    max-unpooling, whose indices are the encoder's. The softmax runs over the pixels of a sample; its values are 1/(HW)
    on average, and 1 with the gain "hw". The paper says nothing of the width, a quarter of C here, nor of the axis.
    """

    def __init__(self, channels: int, *, scale: float, gain: SoftmaxGain = "hw") -> None:
        super().__init__()
        self.scale, self.gain = scale, gain
        width = max(channels // 4, 1)
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.encode = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.core = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        encoded = self.encode(self.squeeze(maps))  # Psi
        pooled, places = F.max_pool2d(encoded, 2, return_indices=True)
        unpooled = F.max_unpool2d(self.core(pooled), places, [2, 2])  # Psi'
        scores = self.decode(unpooled)  # A_s (B, 1, H, W)
        shares = scores.flatten(1).softmax(1).view_as(scores)
        gain = self.scale * (scores[0].numel() if self.gain == "hw" else 1)
        return maps + gain * shares.to(maps.dtype) * maps


_BLOCKS = (2, 4, 8, 8)  # of the width, its parts behind each block, which doubles the map


class DcganDecoder(nn.Module):
    """Linear stem with BN, four blocks of transposed convolution (4x4, stride 2) - BN - LeakyReLU(0.2), then 3x3 to
    RGB, sigmoid.

    Vectors (B, in_features) -> images (B, in_chans, H, W) in [0, 1], at least float32. Radford et al., ICLR 2016, in
    the form of CMI's and Fast's releases: `width` channels behind the stem, then 1/2, 1/4, 1/8 and 1/8 of them.
    `attention` is the weight of the attention behind each block (MSARC's lambda); None: no attention. `spectral`
    divides every convolution's weight by its largest singular value.
    """

    def __init__(
        self,
        in_features: int,
        image_size: Size,
        *,
        width: int = 512,
        in_chans: int = 3,
        attention: float | None = None,
        gain: SoftmaxGain = "hw",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {
            "in_features": in_features,
            "image_size": image_size,
            "width": width,
            "in_chans": in_chans,
            "attention": attention,
            "gain": gain,
            "spectral": spectral,
        }
        self.start_size = undoubled(image_size, len(_BLOCKS))
        self.stem = nn.Linear(in_features, width * self.start_size.area)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks, channels = [], width
        for part in _BLOCKS:
            blocks.append(_block(channels, max(width // part, 1), attention, gain))
            channels = max(width // part, 1)
        self.blocks = nn.Sequential(*blocks)
        self.to_rgb = nn.Conv2d(channels, in_chans, 3, padding=1)
        for layer in self.modules() if spectral else ():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                spectral_norm(layer)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults): no tensor moves, so captured steps stay valid."""
        with self.stem.weight.device:
            fresh = DcganDecoder(**self._arguments)
        for own, drawn in zip(self.state_dict().values(), fresh.state_dict().values(), strict=True):
            own.copy_(drawn)

    def reset_first_layers(self) -> None:
        """`draw_small` for the stem and its BN (Fast's release)."""
        draw_small(self.stem, self.stem_norm)

    def forward(self, vectors: Tensor) -> Tensor:
        maps = self.stem_norm(self.stem(vectors).unflatten(1, (-1, *self.start_size)))
        return torch.sigmoid(at_least_float32(self.to_rgb(self.blocks(in_format_of(self.to_rgb, maps)))))


def _block(in_chans: int, out_chans: int, attention: float | None, gain: SoftmaxGain) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(in_chans, out_chans, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_chans),
        nn.LeakyReLU(0.2),
    ]
    if attention is not None:
        layers.append(SpatialAttention(out_chans, scale=attention, gain=gain))
    return nn.Sequential(*layers)
