"""Height and width of images, in pixels; one number stands for both where they are square. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

Size = int | tuple[int, int]
"""side of square images, or (height, width)"""


class ImageSize(NamedTuple):
    """Height and width in pixels. Its text is `32` or `96x64`, height first."""

    height: int
    width: int

    @classmethod
    def of(cls, size: Size) -> ImageSize:
        """The size that one number, or (height, width), states."""
        return cls(size, size) if isinstance(size, int) else cls(*size)

    def __str__(self) -> str:
        return f"{self.height}" if self.is_square else f"{self.height}x{self.width}"

    @property
    def is_square(self) -> bool:
        """Whether both sides are equal."""
        return self.height == self.width

    @property
    def short(self) -> int:
        """The shorter side."""
        return min(self)

    @property
    def long(self) -> int:
        """The longer side."""
        return max(self)

    @property
    def area(self) -> int:
        """Pixels in all."""
        return self.height * self.width

    @property
    def written(self) -> int | list[int]:
        """As JSON and files have it: one number for squares, as before there were others, else [height, width]."""
        return self.height if self.is_square else list(self)

    @property
    def flag(self) -> str:
        """As `--image-size` takes it, `96 64`."""
        return str(self.height) if self.is_square else f"{self.height} {self.width}"

    def divided(self, parts: int) -> ImageSize | None:
        """Both sides over `parts`; None where a side is no multiple of it."""
        if self.height % parts or self.width % parts:
            return None
        return ImageSize(self.height // parts, self.width // parts)

    def with_short(self, side: int) -> ImageSize | None:
        """The same shape with `side` as its shorter side; None where the other would be no whole number."""
        if self.long * side % self.short:
            return None
        other = self.long * side // self.short
        return ImageSize(side, other) if self.height == self.short else ImageSize(other, side)
