"""Power-law noise: the spectrum of natural images, amplitudes that fall as 1 / f^a.

Field, 1987; as pictures to learn from: Baradad et al., NeurIPS 2021, arXiv:2106.05963.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas, spread
from dfkd_fast.procedural.colours import paint


def power_noise(canvas: Canvas, planes: int, *, low: float = 0.5, high: float = 2.5) -> Tensor:
    """Noise (N, planes, H, W) in [0, 1], each picture with an exponent a in [low, high) and a direction of its own."""
    down = torch.fft.fftfreq(canvas.height, device=canvas.device)[:, None] * canvas.height
    right = torch.fft.rfftfreq(canvas.width, device=canvas.device)[None, :] * canvas.width
    stretch = canvas.log_uniform(1, 1, low=0.4, high=2.5)  # of frequencies: grain along one axis
    frequency = ((down * stretch) ** 2 + (right / stretch) ** 2).sqrt().clamp(min=0.5)
    exponent = canvas.uniform(1, 1, low=low, high=high)
    spectrum = torch.fft.rfft2(canvas.normal(planes, canvas.height, canvas.width))
    drawn = torch.fft.irfft2(spectrum * (frequency**-exponent)[:, None], s=(canvas.height, canvas.width))
    return spread(drawn)


def coloured_noise(canvas: Canvas) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1]: noise of correlated channels, or one map of noise through a palette."""
    planes = power_noise(canvas, canvas.channels + 1)
    common = canvas.uniform(1, 1, 1)
    mixed = spread(common * planes[:, :1] + (1 - common) * planes[:, 1:])
    dark, light = canvas.uniform(canvas.channels, 1, 1, high=0.4), canvas.uniform(canvas.channels, 1, 1, low=0.6)
    return torch.where(canvas.chance(0.5, 1, 1, 1), torch.lerp(dark, light, mixed), paint(planes[:, 0], canvas))
