"""Test images that are decoded anew for each evaluation: any number of them in the memory of a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.data.decoders import Decoder, FileReader, PilDecoder
from dfkd_fast.data.files import ImageFiles
from dfkd_fast.errors import UserError
from dfkd_fast.files.limits import available_cores
from dfkd_fast.files.pictures import Channels
from dfkd_fast.messages.terminal import show

DecoderChoice = Literal["auto", "dali", "pil"]


class Classed(Protocol):
    """Images of classes that have an order."""

    @property
    def name(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    def in_order(self, class_names: tuple[str, ...]) -> Self:
        """The same images, with labels that are indices into `class_names`: its own in another order."""


class LabelledImages(Classed, Protocol):
    """What evaluation asks of a set of images, decoded or not."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def in_chans(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def image_size(self) -> ImageSize: ...
    def __len__(self) -> int: ...

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) uint8, on whichever device, and labels (B,) of `rows` (without it all) in their order;
        the last batch may be smaller.
        """

    def resident(self, device: torch.device) -> LabelledImages:
        """The same set with its images on the device, where they are decoded and few."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How test images are decoded: the settings of `--eval` that say so."""

    decoder: DecoderChoice = "auto"
    workers: int | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    """the filter that scales them: what the network expects"""
    flags: str = "--eval."
    """how the flags of these settings begin"""

    @property
    def asked(self) -> str:
        """The decoder's flag, as an error names it."""
        return f"{self.flags}decoder {self.decoder}"

    def short_side(self, image_size: Size | None) -> int | None:
        """What the short side is scaled to before the middle `image_size` is cut out; None: to its own short side.

        Without `resize` large images lose a sixteenth at each edge, as the field evaluates them (256 pixels for 224);
        small ones, below 96 pixels, lose nothing. Raises UserError where `resize` is below the image.
        """
        if image_size is None:
            return None
        side = ImageSize.of(image_size).short
        if self.resize is None:
            return round(side * 8 / 7) if side >= 96 else None
        if self.resize < side:
            raise UserError(f"{self.flags}resize {self.resize}: choose {side}, the image's shorter side, or more")
        return self.resize

    def check_needless(self, source: str) -> None:
        """Raise UserError where a decoder is asked for and `source` holds no encoded images."""
        if self.decoder != "auto":
            raise UserError(f"{self.asked}: {source} is no folder or tar of image files; choose auto")


@dataclass(frozen=True)
class ImageStream:
    """One split of a data set in its files. What it has in common with a decoded one: `LabelledImages`."""

    name: str
    files: ImageFiles = field(repr=False)
    image_size: ImageSize
    in_chans: int
    decoder: Decoder = field(repr=False)

    def __len__(self) -> int:
        return len(self.files.names)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor(self.files.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; labels are indices into them."""
        return self.files.class_names

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) uint8, on the device that has decoded them, and labels (B,) of `rows` in their order."""
        rows = range(len(self)) if rows is None else rows
        labels = self.labels[rows.start : rows.stop].split(batch_size)
        yield from zip(self.decoder.batches(rows, batch_size), labels, strict=True)

    def resident(self, device: torch.device) -> ImageStream:
        """Itself: it is nowhere as a whole."""
        return self

    def in_order(self, class_names: tuple[str, ...]) -> Self:
        """The same files, with labels that are indices into `class_names`: its own in another order."""
        return replace(self, files=self.files.in_order(class_names))


def relabelled(labels: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """Labels (N,) into `before` as indices into `after`, the same names in another order."""
    place = {name: index for index, name in enumerate(after)}
    return torch.tensor([place[name] for name in before])[labels]


def make_decoder(
    files: ImageFiles,
    image_size: Size | None,
    decoding: Decoding,
    device: torch.device,
    *,
    large: bool,
    channels: Channels = 3,
    flag: str,
) -> Decoder | None:
    """What decodes `files` in any order; None where they are better decoded once, front to back, into memory.

    `auto` streams `large` sets, by DALI if it is installed and else, which it says, by PIL. Raises UserError for a
    decoder that is asked for and cannot be had.
    """
    resize = decoding.short_side(image_size)
    if decoding.decoder != "dali" and not large:
        return None
    reader = FileReader.open(files, flag)
    if decoding.decoder == "dali" and (reader is None or image_size is None):
        missing = "unpack the tar, or decompress it" if reader is None else "give --image-size"
        raise UserError(f"{decoding.asked}: {missing}; or choose pil")
    if reader is None or image_size is None:
        return None
    size = ImageSize.of(image_size)
    workers, scaled = decoding.workers or min(16, available_cores()), (resize, decoding.interpolation)
    if decoding.decoder == "dali" and decoding.interpolation == "box":
        raise UserError(f"{decoding.asked}: has no filter box; choose pil, or another --interpolation")
    if decoding.decoder != "pil" and decoding.interpolation != "box":
        from dfkd_fast.data.decoder_dali import DaliDecoder
        from dfkd_fast.pool.stream_dali import import_dali

        try:
            import_dali(decoding.asked)
        except UserError as missing:
            if decoding.decoder == "dali":
                raise
            show(f"{missing}; Pillow decodes {len(files.names):,} images")
        else:
            return DaliDecoder(reader, size, *scaled, channels=channels, device=device, workers=workers, flag=flag)
    return PilDecoder(reader, size, *scaled, channels=channels, workers=workers, flag=flag)
