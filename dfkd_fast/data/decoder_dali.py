"""NVIDIA DALI as the decoder of test images: on the CPU, or most of it on the GPU ("mixed")."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.data.decoders import FileReader, PilDecoder, in_threads
from dfkd_fast.data.files import middle_part
from dfkd_fast.errors import UserError
from dfkd_fast.files.pictures import Channels, PictureReader, is_plain, opened
from dfkd_fast.messages.notes import note, printable
from dfkd_fast.pool.stream_dali import import_dali

_FILTERS = {
    "bilinear": "INTERP_LINEAR",
    "bicubic": "INTERP_CUBIC",
    "lanczos": "INTERP_LANCZOS3",
    "nearest": "INTERP_NN",
}


class _File(NamedTuple):
    """What the pipeline is fed of one image."""

    content: np.ndarray
    """(bytes,) uint8, as it lies in the file"""
    start: np.ndarray
    """(2,) float32: top and left of what is kept"""
    end: np.ndarray
    """(2,) float32: bottom and right"""


class DaliDecoder:
    """A DALI pipeline of `workers` threads: decode, and scale the part that `middle_part` names.

    Pixels differ from Pillow's by a grey level at most, where JPEG decoders agree: both average, each rounds its own
    way. A picture that is not plain (16 bits, transparent, turned by its EXIF data, of other channels or another format
    than JPEG and PNG) is decoded by Pillow and handed on as bare pixels, so that every decoder makes the same of it.
    """

    def __init__(
        self,
        reader: FileReader,
        image_size: ImageSize,
        resize: int | None,
        interpolation: str,
        *,
        channels: Channels = 3,
        device: torch.device,
        workers: int,
        flag: str,
    ) -> None:
        self.reader, self.image_size, self.resize, self.interpolation = reader, image_size, resize, interpolation
        self.channels, self.device, self.workers, self.flag = channels, device, workers, flag
        self._pictures, self._by_pillow = PictureReader(channels), 0
        self._feed: Iterator[list[_File]] = iter(())
        self._pipelines: dict[int, Any] = {}

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        """On a GPU the images lie there. Raises UserError for a file that cannot be decoded."""
        pipeline = self._pipelines.get(batch_size) or self._pipelines.setdefault(batch_size, self._build(batch_size))
        self._feed = in_threads(self._file, rows, batch_size, 1)  # reading is little work beside decoding
        self._by_pillow = 0
        cuda = self.device.type == "cuda"
        for done in range(0, len(rows), batch_size):
            try:
                (images,) = pipeline.run(*([torch.cuda.current_stream(self.device)] if cuda else []))
            except RuntimeError as error:
                raise self._explained(rows[done:], error) from error
            yield torch.from_dlpack(images.as_tensor())  # DALI's memory, which lives as long as the tensor
        pipeline.reset()
        source = f"{self.flag} {self.reader.files.source}"
        self._pictures.report(source)
        if self._by_pillow:
            note(f"{printable(source)}: {self._by_pillow:,} pictures are not plain JPEG or PNG; Pillow decodes these")

    def _next(self) -> tuple[list[np.ndarray], ...]:
        """A batch for the pipeline; StopIteration after the last."""
        return tuple(map(list, zip(*next(self._feed), strict=True)))

    def _file(self, index: int) -> _File:
        content, what = self.reader.read(index), self.reader.files.describe(index, self.flag)
        with opened(content, what) as image:  # its header alone
            size, plain = image.size, is_plain(image, self.channels)
        if not plain:
            shown = self._pictures.read(content, what)
            self._by_pillow += 1
            size, bare = shown.size, BytesIO()
            shown.save(bare, "ppm")
            content = bare.getvalue()
        left, top, right, bottom = middle_part(*size, self.image_size, self.resize)
        start, end = np.array([top, left], np.float32), np.array([bottom, right], np.float32)
        return _File(np.frombuffer(content, np.uint8), start, end)

    def _explained(self, rows: range, error: RuntimeError) -> UserError:
        """Which file it was: Pillow may name it."""
        pil = PilDecoder(
            self.reader,
            self.image_size,
            self.resize,
            self.interpolation,
            channels=self.channels,
            workers=self.workers,
            flag=self.flag,
        )
        for _ in pil.batches(rows[: 4 * max(self._pipelines)], self.workers):
            pass
        reason = str(error).strip().partition("\n")[0]
        return UserError(
            f"{self.flag} {self.reader.files.source}: DALI cannot decode it ({reason}); choose decoder pil"
        )

    def _build(self, batch_size: int) -> Any:
        dali = import_dali("decoder dali")
        fn, types = dali.fn, dali.types
        cuda = self.device.type == "cuda"
        pipeline = dali.Pipeline(batch_size, self.workers, (self.device.index or 0) if cuda else None)
        with pipeline:
            fed = fn.external_source(
                source=self._next, num_outputs=3, dtype=[types.UINT8, types.FLOAT, types.FLOAT], ndim=1
            )
            content, start, end = fed
            images = fn.decoders.image(
                content,
                device="mixed" if cuda else "cpu",
                output_type=types.GRAY if self.channels == 1 else types.RGB,
                adjust_orientation=False,  # what is turned comes from Pillow
                jpeg_fancy_upsampling=True,  # as libjpeg, and so Pillow, does
            )
            pipeline.set_outputs(
                fn.resize(
                    images,
                    size=list(self.image_size),
                    roi_start=start,
                    roi_end=end,
                    interp_type=getattr(types, _FILTERS[self.interpolation]),
                    antialias=True,
                )
            )
        pipeline.build()
        return pipeline
