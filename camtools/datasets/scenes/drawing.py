"""What scenes are drawn with: random numbers (`Stream`), pixels with their places (`Canvas`), textures and colours.

All arithmetic is sums, products, quotients and roundings, which every machine does alike to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Stream:
    """One scene's random numbers: NumPy's legacy generator, whose values NumPy promises never to change (NEP 19).

    Args:
        key: Whole numbers of at least 0 that name the stream; other keys give independent streams.
    """

    def __init__(self, *key: int) -> None:
        self._random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(self._random.random_sample())

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self._random.randint(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform(0, 1) < probability

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.integer(0, len(items) - 1)]

    def array(self, *shape: int) -> Floats:
        """Return numbers in [0, 1)."""
        return self._random.random_sample(shape)

    def direction(self) -> tuple[float, float]:
        """Return a unit vector from the rational points of the circle, which need no sine."""
        t = self.uniform(-1, 1)
        x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return (x, y) if self.chance(0.5) else (-x, -y)


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image, or a window of one that shares its pixels.

    Attributes:
        x: Place of every pixel's centre, 0 at the image's left edge and 1 at its right, (H, W).
        y: Likewise, downwards.
        pixels: (H, W, 3), linear light, about [0, 1].
        place: The window's rows and columns in the whole image.
    """

    x: Floats
    y: Floats
    pixels: Floats
    place: tuple[slice, slice]

    @classmethod
    def blank(cls, size: int) -> Canvas:
        """Return a black square with sides of `size` pixels."""
        position = (np.arange(size) + 0.5) / size
        x, y = np.broadcast_to(position, (size, size)), np.broadcast_to(position[:, None], (size, size))
        return cls(x, y, np.zeros((size, size, 3)), (slice(0, size), slice(0, size)))

    def window(self, x0: float, y0: float, x1: float, y1: float) -> Canvas:
        """Return the part of a whole image that holds a box, at least one pixel of it."""
        size = len(self.x)
        rows, columns = _span(y0, y1, size), _span(x0, x1, size)
        return Canvas(self.x[rows, columns], self.y[rows, columns], self.pixels[rows, columns], (rows, columns))

    def paint(self, where: Bools, surface: Floats) -> None:
        """Put a surface, (H, W, 3), where `where` (H, W) is True."""
        self.pixels[where] = surface[where]

    def whole(self, mask: Bools, size: int) -> Bools:
        """Return a mask of this window as one of the whole image, (size, size)."""
        whole = np.zeros((size, size), dtype=bool)
        whole[self.place] = mask
        return whole


def _span(low: float, high: float, size: int) -> slice:
    """Return the pixels that a range touches."""
    start = min(max(int(np.floor(low * size)), 0), size - 1)
    return slice(start, max(start + 1, min(int(np.floor(high * size)) + 1, size)))


def value_noise(stream: Stream, x: Floats, y: Floats, cells: int) -> Floats:
    """Return smooth random patches.

    Args:
        stream: Random numbers; (cells + 1)^2 are taken, whatever the size of the image.
        x: Positions in [0, 1], (H, W).
        y: Likewise.
        cells: Patches along each side.

    Returns:
        (H, W) in [0, 1].
    """
    lattice = stream.array(cells + 1, cells + 1)
    columns, fx = _cell(x, cells)
    rows, fy = _cell(y, cells)
    top = lattice[rows, columns] * (1 - fx) + lattice[rows, columns + 1] * fx
    bottom = lattice[rows + 1, columns] * (1 - fx) + lattice[rows + 1, columns + 1] * fx
    return top * (1 - fy) + bottom * fy


def _cell(position: Floats, cells: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the lattice cell of a position in [0, 1], and a smoothed place within it."""
    scaled = np.clip(position, 0, 1) * cells
    index = np.minimum(np.floor(scaled), cells - 1).astype(np.int64)
    place = scaled - index
    return index, place * place * (3 - 2 * place)


def clouds(stream: Stream, x: Floats, y: Floats) -> Floats:
    """Return two octaves of value noise."""
    coarse = stream.integer(3, 7)
    return 0.65 * value_noise(stream, x, y, coarse) + 0.35 * value_noise(stream, x, y, 3 * coarse)


def stripes(stream: Stream, x: Floats, y: Floats) -> Floats:
    """Return soft stripes in any direction."""
    dx, dy = stream.direction()
    count, shift = stream.uniform(5, 14), stream.uniform(0, 1)
    phase = (x * dx + y * dy) * count + shift
    return np.abs(2 * (phase - np.floor(phase)) - 1)


def checks(stream: Stream, x: Floats, y: Floats) -> Floats:
    """Return a turned chessboard."""
    dx, dy = stream.direction()
    count = stream.uniform(5, 11)
    across, along = np.floor((x * dx + y * dy) * count), np.floor((y * dx - x * dy) * count)
    return across + along - 2 * np.floor((across + along) / 2)


def spots(stream: Stream, x: Floats, y: Floats) -> Floats:
    """Return round dots on a turned grid."""
    dx, dy = stream.direction()
    count = stream.uniform(6, 14)
    u, v = (x * dx + y * dy) * count, (y * dx - x * dy) * count
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return (u * u + v * v < stream.uniform(0.04, 0.12)).astype(np.float64)


PATTERNS: tuple[Callable[[Stream, Floats, Floats], Floats], ...] = (clouds, stripes, checks, spots)


def texture(
    stream: Stream, x: Floats, y: Floats, first: Floats, second: Floats, pattern: Callable[..., Floats] | None = None
) -> Floats:
    """Return a surface in two colours.

    Args:
        stream: Random numbers.
        x: Positions in [0, 1], (H, W).
        y: Likewise.
        first: RGB in [0, 1], (3,): where the pattern is 0.
        second: RGB where it is 1.
        pattern: One of `PATTERNS`; None draws one.

    Returns:
        (H, W, 3), about [0, 1].
    """
    grey = (pattern or stream.choice(PATTERNS))(stream, x, y)[..., None]
    grain = value_noise(stream, x, y, 24)[..., None]
    return (first * (1 - grey) + second * grey) * (0.85 + 0.3 * grain)


def colour(stream: Stream, *unlike: Floats, distance: float = 0.5) -> Floats:
    """Return a random RGB colour, (3,) in [0.05, 0.95], not too garish, away from others.

    Args:
        stream: Random numbers.
        unlike: Colours to keep away from.
        distance: How far, as the sum of the three channels' differences; it is relaxed where colours run out.
    """
    for attempt in range(100):
        rgb = 0.05 + 0.9 * stream.array(3)
        rgb = 0.75 * rgb + 0.25 * ((rgb[0] + rgb[1] + rgb[2]) / 3)
        gaps = (abs(rgb[0] - c[0]) + abs(rgb[1] - c[1]) + abs(rgb[2] - c[2]) for c in unlike)
        if all(gap >= distance * (1 - attempt / 100) for gap in gaps):
            break
    return rgb


def variant(stream: Stream, base: Floats, amount: float) -> Floats:
    """Return a colour near another, each channel moved by at most `amount`."""
    return np.clip(base + amount * (2 * stream.array(3) - 1), 0, 1)
