"""Picture files as pixels: which are read, up to which size, and what becomes of depth, transparency and orientation.

A picture is taken as a viewer shows it: turned as its EXIF orientation says, laid over white where it is transparent.
Of 16 bits the upper eight are kept; floating-point pixels, whose range nobody knows, are refused. Only the first of
several frames or pages is read.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note, printable

Channels = Literal[1, 3]


def picture_channels(channels: int, what: str) -> Channels:
    """As many as pictures are read with. Raises UserError, which begins with `what`, for other numbers."""
    if channels not in (1, 3):
        raise UserError(
            f"{what}: pictures are read as grey or RGB, not with {channels} channels; give a .npz file of them"
        )
    return 1 if channels == 1 else 3


def pillow_filter(interpolation: str) -> Image.Resampling:
    """Pillow's filter of that name: bilinear, bicubic, lanczos, box, or nearest, which alone takes no average."""
    return Image.Resampling[interpolation.upper()]


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""what is decoded, whatever a file is called: none of them starts a program, as Pillow's EPS does"""
MAX_PIXELS = 2**26
"""of one picture (8192 x 8192; ImageNet's largest has 61 million)"""
MAX_BYTES = 2**28
"""of one picture's file"""
WHITE = (255, 255, 255, 255)
"""what transparent pictures are laid over"""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY = ("1", "L", "LA", "La")
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_LFS = b"version https://git-lfs"


class PictureReader:
    """Decodes pictures of one source and counts what it did to them beyond that. Threads may share it.

    `channels`: 3 (RGB), 1 (grey: colours by their luma, ITU-R 601), or None: grey pictures stay grey.
    """

    def __init__(self, channels: Channels | None) -> None:
        self.channels = channels
        self._treated: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, content: bytes | Path, what: str) -> Image.Image:
        """The picture, mode L or RGB. Raises UserError, which begins with `what`, for one that cannot be taken."""
        with opened(content, what) as image, _explained(what):
            return self.shown(image)

    def shown(self, image: Image.Image) -> Image.Image:
        """An opened picture as L or RGB. Raises OSError where it is damaged or refused."""
        image.load()
        turn = _TURNS.get(orientation(image))
        self._count(turn, "turned as their EXIF orientation says")
        is_grey = image.mode in _GREY or _is_deep(image)
        if _is_deep(image):
            self._count(True, "16-bit, of which the upper eight are kept")
            image = _upper_bits(image)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            self._count(image.getchannel("A").getextrema()[0] != 255, "transparent, laid over white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
        if self.channels == 1 and not is_grey:
            self._count(True, "in colour, read as grey")
            image = image.convert("RGB")
        as_grey = is_grey if self.channels is None else self.channels == 1
        image = image.convert("L" if as_grey else "RGB")
        return image if turn is None else image.transpose(turn)

    def report(self, source: str) -> None:
        """Say in a line what was done to the pictures read so far, if anything, and begin to count anew."""
        with self._lock:
            treated, self._treated = self._treated, Counter()
        if treated:
            note(f"{printable(source)}: pictures {'; '.join(f'{treated[kind]:,} {kind}' for kind in sorted(treated))}")

    def _count(self, happened: object, kind: str) -> None:
        if happened:
            with self._lock:
                self._treated[kind] += 1


@contextlib.contextmanager
def opened(content: bytes | Path, what: str) -> Iterator[Image.Image]:
    """A picture of which the header is read. Raises UserError that begins with `what` for none, and for too large ones.

    What goes wrong within is not caught here.
    """
    _be_quiet()
    with contextlib.ExitStack() as stack:
        with _explained(what):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            if size > MAX_BYTES:
                raise OSError(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
            file = BytesIO(content) if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            try:
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            except UnidentifiedImageError:  # whose own words name a buffer in memory
                file.seek(0)
                raise OSError(_called(file.read(len(_LFS)))) from None
            if image.width * image.height > MAX_PIXELS:
                raise OSError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
        yield image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or it is damaged, as viewers take it."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # bytes that are no EXIF can make its parser fail in any way
        return 1
    return found if found in _TURNS else 1


def is_plain(image: Image.Image, channels: Channels) -> bool:
    """Whether any decoder makes the same of it: 8 bits a channel, neither turned nor transparent, of `channels`."""
    mode = "L" if channels == 1 else image.mode
    tiles = getattr(image, "tile", ())  # what is left to decode, and how
    codec = tiles[0][3] if tiles else None
    return (
        image.format in _PLAIN_FORMATS
        and image.mode == mode
        and mode in ("L", "RGB")
        and (image.format != "PNG" or codec == mode)  # not one of 1, 2, 4 or 16 bits
        and not image.has_transparency_data
        and orientation(image) == 1
    )


def is_deep(image: Image.Image) -> bool:
    """Whether a file, of which no pixels are decoded yet, has more than 8 bits a channel: also those of which Pillow
    keeps the upper ones alone.
    """
    tiles = getattr(image, "tile", ())
    codec = str(tiles[0][3]) if tiles and image.format == "PNG" else ""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return _is_deep(image) or ";16" in codec or max(bits) > 8


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever a decoder says of a file's bytes becomes a UserError that begins with `what`."""
    try:
        yield
    except Exception as error:  # damaged files make decoders fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{what} cannot be decoded ({reason})") from error


def _called(head: bytes) -> str:
    """What a file is that is no picture."""
    if head.startswith(_LFS):
        return "a Git-LFS pointer, not the picture: git lfs pull"
    return "it is no image" if head else "it is empty"


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper eight bits of 16 (of 12, where a TIFF says so) as mode L."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise OSError(f"mode {image.mode}: pixels of an unknown range; save them with 8 or 16 bits")
    if tags.get(_PHOTOMETRIC) == 0:
        raise OSError("16 bits of which 0 is white; save it with 8, or with 0 as black")
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() >= 1 << bits:
        raise OSError(f"mode {image.mode}: pixels from {levels.min()} to {levels.max()}; expected {bits} bits")
    grey = (levels >> (bits - 8)).astype(np.uint8)
    clear = image.info.get("transparency")
    return Image.fromarray(np.where(levels == clear, 255, grey).astype(np.uint8) if isinstance(clear, int) else grey)


@functools.cache
def _be_quiet() -> None:
    """Pillow warns of damaged EXIF data, and at a size that is refused here: both are dealt with."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
