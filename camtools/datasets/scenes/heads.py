"""The heads: a dark face with one bright mark a class, the only thing that tells the classes apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from camtools.datasets.scenes.stream import Bools, Floats, Stream

_HALF_SQRT_3 = 0.8660254037844386


def _disc(u: Floats, v: Floats) -> Bools:
    return u * u + v * v <= 0.85


def _ring(u: Floats, v: Floats) -> Bools:
    r = u * u + v * v
    return (r <= 1) & (r >= 0.3)


def _triangle(u: Floats, v: Floats) -> Bools:
    # Point first, away from the body.
    return (u >= -0.6) & (0.5 * u + _HALF_SQRT_3 * np.abs(v) <= 0.55)


def _plus(u: Floats, v: Floats) -> Bools:
    a, b = np.abs(u), np.abs(v)
    return (np.maximum(a, b) <= 1) & (np.minimum(a, b) <= 0.3)


def _crescent(u: Floats, v: Floats) -> Bools:
    shifted = u - 0.5
    return (u * u + v * v <= 1) & (shifted * shifted + v * v >= 0.55)


def _hourglass(u: Floats, v: Floats) -> Bools:
    a, b = np.abs(u), np.abs(v)
    return (b <= 0.95) & (a <= 0.1 + 0.8 * b)


def _pair(u: Floats, v: Floats) -> Bools:
    b = np.abs(v) - 0.62
    return u * u + b * b <= 0.2


def _ladder(u: Floats, v: Floats) -> Bools:
    a = np.abs(u)
    return (np.abs(v) <= 0.95) & ((a <= 0.19) | ((a >= 0.57) & (a <= 0.95)))


MARKS: Mapping[str, Callable[[Floats, Floats], Bools]] = MappingProxyType(
    {
        "disc": _disc,
        "ring": _ring,
        "triangle": _triangle,
        "plus": _plus,
        "crescent": _crescent,
        "hourglass": _hourglass,
        "pair": _pair,
        "ladder": _ladder,
    }
)
"""Class names, in the order of their indices, and where each mark is: u away from the body, v across, both (H, W); True
on the mark. Every mark lies within the circle of radius `FACE` that is the face."""

FACE = 1.4
_SHAPES = tuple(MARKS.values())


def face(u: Floats, v: Floats) -> Bools:
    """Return where a face is, (H, W), in the coordinates of `MARKS`."""
    return u * u + v * v <= FACE * FACE


def mark(label: int, u: Floats, v: Floats) -> Bools:
    """Return where the mark of a class is, (H, W), in the coordinates of `MARKS`."""
    return _SHAPES[label](u, v)


def head_surface(stream: Stream, label: int, u: Floats, v: Floats) -> Floats:
    """Return the surface of a head, (H, W, 3): a dark face of any hue, its mark bright, whatever the colours.

    Args:
        stream: Random numbers.
        label: Class index.
        u: Coordinates as in `MARKS`, (H, W).
        v: Likewise.
    """
    dark, bright = 0.05 + 0.25 * stream.array(3), 0.6 + 0.4 * stream.array(3)
    return np.where(mark(label, u, v)[..., None], bright, dark)
