"""Surfaces: grey patterns in [0, 1] over the picture's plane, and coloured textures made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camtools.datasets.scenes.stream import Floats, Stream


def value_noise(stream: Stream, x: Floats, y: Floats, cells: int) -> Floats:
    """Return smooth random patches.

    Args:
        stream: Random numbers; (cells + 1)^2 are taken, whatever the size of the picture.
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


def _cell(position: Floats, cells: int) -> tuple[np.ndarray, Floats]:
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
        found = 0.05 + 0.9 * stream.array(3)
        found = 0.75 * found + 0.25 * ((found[0] + found[1] + found[2]) / 3)
        gaps = (abs(found[0] - c[0]) + abs(found[1] - c[1]) + abs(found[2] - c[2]) for c in unlike)
        if all(gap >= distance * (1 - attempt / 100) for gap in gaps):
            break
    return found


def variant(stream: Stream, base: Floats, amount: float) -> Floats:
    """Return a colour near another, each channel moved by at most `amount`."""
    return np.clip(base + amount * (2 * stream.array(3) - 1), 0, 1)
