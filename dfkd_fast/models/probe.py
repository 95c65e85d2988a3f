"""Ask a network with noise whether it has been trained, and on input of the scale that it is given.

For where no image can tell. Thresholds are from trained and fresh networks of several kinds: on noise of natural
images' spectrum the first BatchNorm layer sees 0.5 to 1.1 times the variance of its statistics, and logits of one image
spread by 1 to 7; fresh networks' spread by 0.02 to 0.4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet

_LEAST_SPREAD = 0.5  # of an image's logits over the classes
_MOST_SCALE = 3.2  # how many times stronger, or weaker, a first layer's input may be than in training
_IMAGES = 32


@torch.no_grad()
def suspicions(teacher: FrozenNet, runtime: Runtime) -> list[str]:
    """Warnings, a line each, of what looks untrained or wrongly scaled; all ranks call this. Takes no random numbers
    from torch's own stream.
    """
    view = natural_noise(teacher.info, _IMAGES).to(runtime.device, runtime.master_dtype)
    with runtime.autocast():
        found = teacher(view.contiguous(memory_format=runtime.memory_format))
    lines = [*_untrained(found.logits, teacher)]
    if found.moments and not _is_fresh(teacher):
        expected = teacher.targets[0][1].double().clamp_min(1e-12)
        ratio = (found.moments[0].var().double() / expected).sqrt().median().item()
        if not 1 / _MOST_SCALE < ratio < _MOST_SCALE:
            times = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g}" if ratio > 0 else "nothing"
            lines.append(
                f"noise of the stated mean and std reaches its first BatchNorm layer {times} as strong as its training "
                "images did; check --mean and --std"
            )
    return [f"warning: the teacher {line}" if line.startswith("has") else f"warning: {line}" for line in lines]


def _untrained(logits: Tensor, teacher: FrozenNet) -> Iterator[str]:
    spread = logits.double().std(dim=1).mean().item()
    if _is_fresh(teacher):
        yield "has the BatchNorm statistics of a network that has seen no image; check the weights"
    elif not spread >= _LEAST_SPREAD:
        yield (
            f"has logits that spread by {spread:.2g} over the classes on noise, as those of a network that has learnt "
            "nothing; check the weights"
        )


def _is_fresh(teacher: FrozenNet) -> bool:
    """Whether every BatchNorm layer has the statistics that it was made with."""
    targets = teacher.targets
    return bool(targets) and all(bool((mean == 0).all() and (var == 1).all()) for mean, var in targets)


def natural_noise(info: ModelInfo, count: int) -> Tensor:
    """Normalised images (count, C, S, S), float32: Gaussian noise of mean 0 and variance 1, whose amplitude falls with
    the frequency as that of natural images does, with channels that mostly agree. The same on every machine and call.
    """
    size, channels = info.image_size, info.in_chans
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, 1, size, size, generator=generator)
    white = common + 0.3 * torch.randn(count, channels, size, size, generator=generator)
    frequency = (torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size) ** 2 + size**-2).sqrt()
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(size, size))
    return (noise - noise.mean()) / noise.std()
