"""NVIDIA DALI as the decoder of test images: on the CPU, or most of it on the GPU ("mixed")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.image_decoders import FileReader, PilDecoder, in_threads
from dfkd_fast.image_files import middle_square, opened_image
from dfkd_fast.pool.stream_dali import import_dali


class _File(NamedTuple):
    """What the pipeline is fed of one image."""

    content: np.ndarray
    """(bytes,) uint8, as it lies in the file"""
    start: np.ndarray
    """(2,) float32: top and left of what is kept"""
    end: np.ndarray
    """(2,) float32: bottom and right"""


class DaliDecoder:
    """A DALI pipeline of `workers` threads: decode, and scale the part that `middle_square` names.

    Pixels differ from Pillow's by a grey level at most, where JPEG decoders agree: both average, each rounds its own
    way. EXIF orientations are not applied, as by Pillow.
    """

    def __init__(
        self,
        reader: FileReader,
        image_size: int,
        resize: int | None,
        *,
        device: torch.device,
        workers: int,
        flag: str,
    ) -> None:
        self.reader, self.image_size, self.resize = reader, image_size, resize
        self.device, self.workers, self.flag = device, workers, flag
        self._feed: Iterator[list[_File]] = iter(())
        self._pipelines: dict[int, Any] = {}

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        """On a GPU the images lie there. Raises UserError for a file that cannot be decoded."""
        pipeline = self._pipelines.get(batch_size) or self._pipelines.setdefault(batch_size, self._build(batch_size))
        self._feed = in_threads(self._file, rows, batch_size, 1)  # reading is little work beside decoding
        cuda = self.device.type == "cuda"
        for done in range(0, len(rows), batch_size):
            try:
                (images,) = pipeline.run(*([torch.cuda.current_stream(self.device)] if cuda else []))
            except RuntimeError as error:
                raise self._explained(rows[done:], error) from error
            yield torch.from_dlpack(images.as_tensor())  # DALI's memory, which lives as long as the tensor
        pipeline.reset()

    def _next(self) -> tuple[list[np.ndarray], ...]:
        """A batch for the pipeline; StopIteration after the last."""
        return tuple(map(list, zip(*next(self._feed), strict=True)))

    def _file(self, index: int) -> _File:
        content = self.reader.read(index)
        with opened_image(content, self.reader.describe(index, self.flag)) as image:  # its header alone
            left, top, right, bottom = middle_square(*image.size, self.image_size, self.resize)
        start, end = np.array([top, left], np.float32), np.array([bottom, right], np.float32)
        return _File(np.frombuffer(content, np.uint8), start, end)

    def _explained(self, rows: range, error: RuntimeError) -> UserError:
        """Which file it was: Pillow may name it."""
        pil = PilDecoder(self.reader, self.image_size, self.resize, workers=self.workers, flag=self.flag)
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
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as libjpeg, and so Pillow, does
            )
            pipeline.set_outputs(
                fn.resize(
                    images,
                    size=[self.image_size, self.image_size],
                    roi_start=start,
                    roi_end=end,
                    interp_type=types.INTERP_LINEAR,
                    antialias=True,
                )
            )
        pipeline.build()
        return pipeline
