"""What is painted on: a square of pixels with their places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from camtools.datasets.scenes.stream import Bools, Floats


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture, or a window of one that shares its pixels.

    Attributes:
        x: Place of every pixel's centre, 0 at the picture's left edge and 1 at its right, (H, W).
        y: Likewise, downwards.
        pixels: (H, W, 3), linear light, about [0, 1].
        place: The window's rows and columns in the whole picture.
    """

    x: Floats
    y: Floats
    pixels: Floats
    place: tuple[slice, slice]

    @classmethod
    def blank(cls, size: int) -> Canvas:
        """Return a black square of `size` pixels a side."""
        position = (np.arange(size) + 0.5) / size
        x, y = np.broadcast_to(position, (size, size)), np.broadcast_to(position[:, None], (size, size))
        return cls(x, y, np.zeros((size, size, 3)), (slice(0, size), slice(0, size)))

    def window(self, x0: float, y0: float, x1: float, y1: float) -> Canvas:
        """Return the part of a whole picture that holds a box, at least one pixel of it."""
        size = len(self.x)
        rows, columns = _span(y0, y1, size), _span(x0, x1, size)
        return Canvas(self.x[rows, columns], self.y[rows, columns], self.pixels[rows, columns], (rows, columns))

    def paint(self, where: Bools, surface: Floats) -> None:
        """Put a surface, (H, W, 3), where `where` (H, W) is True."""
        self.pixels[where] = surface[where]

    def whole(self, mask: Bools, size: int) -> Bools:
        """Return a mask of this window as one of the whole picture, (size, size)."""
        found = np.zeros((size, size), dtype=bool)
        found[self.place] = mask
        return found


def _span(low: float, high: float, size: int) -> slice:
    """Return the pixels that a range touches."""
    start = min(max(int(np.floor(low * size)), 0), size - 1)
    return slice(start, max(start + 1, min(int(np.floor(high * size)) + 1, size)))
