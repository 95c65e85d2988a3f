"""Comparison of an exported network with the one that it was made of: on synthetic images, and on real ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfkd_fast.data.splits import load_test_split
from dfkd_fast.data.stream import Decoding
from dfkd_fast.deploy.formats import Answer
from dfkd_fast.errors import UserError
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.shards import pools_in
from dfkd_fast.training.judge import natural_noise

BATCH = 32
SYNTHETIC = 256
"""images at most of a pool"""
NOISE = 64
"""images of noise, where there is no pool"""
_PIECES = 16  # of a set of real images, which lie in the order of their classes


class Images(NamedTuple):
    """What both networks are shown."""

    source: str
    """in words"""
    batches: Iterable[Tensor]
    """(B, C, H, W) float32 in [0, 1], of any B; asked for once"""


class Comparison(NamedTuple):
    """How far two networks' answers are apart."""

    source: str
    images: int
    max_difference: float
    """largest difference of two logits"""
    max_logit: float
    """largest size of a logit of the network"""
    agreement: float
    """share of images to which both give the same class"""

    def described(self) -> str:
        """In one line."""
        return (
            f"{self.images:,} {self.source}: logits differ by {self.max_difference:.2g} at most, of up to "
            f"{self.max_logit:.3g}; top-1 agreement {self.agreement:.2%}"
        )


@torch.no_grad()
def compare(network: Answer, exported: Answer, images: Images, *, tolerance: float, what: str) -> Comparison:
    """Show both every batch, the first image of each also alone, as a graph for one number of images would fail there.

    Raises UserError, beginning with `what`, where the answers differ by more than `tolerance` times the largest logit
    (at least 1), are not finite, or cannot be had.
    """
    count, same, difference, largest = 0, 0, 0.0, 0.0
    for batch in images.batches:
        for part in (batch, batch[:1]):
            expected = network(part)
            try:
                found = exported(part)
            except Exception as error:  # of any kind, and of another library
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"{what}: fails on {len(part)} images ({reason[:300]})") from error
            if found.shape != expected.shape or not found.isfinite().all() or not expected.isfinite().all():
                raise UserError(f"{what}: its answers, or the network's, are not finite, or of another shape")
            difference = max(difference, (found - expected).abs().max().item())
            largest = max(largest, expected.abs().max().item())
            if part is batch:
                count, same = count + len(part), same + int((found.argmax(1) == expected.argmax(1)).sum())
    result = Comparison(images.source, count, difference, largest, same / count)
    if difference > tolerance * max(1.0, largest):
        raise UserError(f"{what}: does not answer as the network does ({result.described()}); --tolerance {tolerance}")
    return result


def synthetic_images(info: ModelInfo, run: Path | None) -> Images:
    """The newest images of a run's pool; noise of natural images' spectrum where it has none."""
    for folder in pools_in(run) if run is not None else ():
        files = PoolFiles(folder)
        channels, height, width = info.shape
        if len(files) and files.manifest.layout.fields["images"].shape == (height, width, channels):
            end = files.manifest.live(files.manifest.count)
            blocks = files.read(max(end - len(files), end - SYNTHETIC), end, ["images"])
            return Images("images of the run's pool", _cut(block["images"] for _, block in blocks))
    noise = natural_noise(info, NOISE)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    shown = (noise * std + mean).clamp(0, 1)
    return Images("images of noise with natural images' spectrum (no pool of its own)", shown.split(BATCH))


def real_images(data: str, info: ModelInfo, count: int) -> Images:
    """Of the test images in `data`, `count` from places spread evenly over them; all where they are fewer."""
    found = load_test_split(
        data,
        image_size=info.image_size,
        decoding=Decoding(interpolation=info.interpolation, flags="--"),
        device=torch.device("cpu"),
        channels=info.in_chans,
    )
    pieces = min(_PIECES, max(1, len(found) // BATCH))
    size = min(-(-count // pieces), len(found) // pieces)
    starts = [piece * len(found) // pieces for piece in range(pieces)]
    batches = (pixels for start in starts for pixels, _ in found.batches(BATCH, range(start, start + size)))
    return Images(f"images of {found.name}", _cut(pixels.cpu() for pixels in batches))


def _cut(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Bytes (N, H, W, C) as batches (B, C, H, W) in [0, 1]."""
    for block in blocks:
        for pixels in block.split(BATCH):
            yield pixels.permute(0, 3, 1, 2).float() / 255
