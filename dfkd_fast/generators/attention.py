"""MSARC's spatial attention: where a generator's map is worth more."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

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
