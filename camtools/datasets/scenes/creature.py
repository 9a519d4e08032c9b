"""Creatures: a large body that all classes share, with the small head of one class at its end.

Heads have coordinates of their own, see `MARKS`: u away from the body, v across, 1 about the radius of a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from camtools.datasets.scenes.drawing import Bools, Floats, Stream, colour, texture, variant

OUT = 0.6  # how far a head's centre lies beyond the body's end, in radii of the head
FACE = 1.4  # radius of the face, in the head's coordinates
_HALF_SQRT_3 = 0.8660254037844386


MARKS: Mapping[str, Callable[[Floats, Floats], Bools]] = MappingProxyType(
    {
        "disc": lambda u, v: u * u + v * v <= 0.85,
        "ring": lambda u, v: (u * u + v * v <= 1) & (u * u + v * v >= 0.3),
        # Point first, away from the body.
        "triangle": lambda u, v: (u >= -0.6) & (0.5 * u + _HALF_SQRT_3 * np.abs(v) <= 0.55),
        "plus": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) <= 1) & (np.minimum(np.abs(u), np.abs(v)) <= 0.3),
        "crescent": lambda u, v: (u * u + v * v <= 1) & (np.square(u - 0.5) + v * v >= 0.55),
        "hourglass": lambda u, v: (np.abs(v) <= 0.95) & (np.abs(u) <= 0.1 + 0.8 * np.abs(v)),
        "pair": lambda u, v: u * u + np.square(np.abs(v) - 0.62) <= 0.2,
        "ladder": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) <= 0.95) & ((np.abs(u) <= 0.19) | (np.abs(u) >= 0.57)),
    }
)
"""Class names, in the order of their indices, and where each mark is: u away from the body, v across, both (H, W); True
on the mark. Every mark lies within the circle of radius `FACE` that is the face."""


def face(u: Floats, v: Floats) -> Bools:
    """Return where a face is, (H, W), in the coordinates of `MARKS`."""
    return u * u + v * v <= FACE * FACE


def mark(label: int, u: Floats, v: Floats) -> Bools:
    """Return where the mark of a class is, (H, W), in the coordinates of `MARKS`."""
    return list(MARKS.values())[label](u, v)


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


@dataclass(frozen=True)
class Pose:
    """Where a creature stands; lengths are fractions of the image's side.

    Attributes:
        x: Body centre.
        y: Likewise, downwards.
        axis: Unit vector from tail to head.
        length: Half the body's length.
        width: Half the body's width at its centre.
        taper: How much wider the body is towards the head.
        bend: How far the body's ends lie off its axis, in units of `length`.
        legs: Places along the axis, in units of `length`.
        leg: Length of the legs below the body.
        side: 1 or -1, the side of the axis the legs are on.
        head: The head's radius.
    """

    x: float
    y: float
    axis: tuple[float, float]
    length: float
    width: float
    taper: float
    bend: float
    legs: tuple[float, ...]
    leg: float
    side: int
    head: float

    @property
    def nose(self) -> tuple[float, float]:
        """The place of the head's centre."""
        return self._place(self.length + OUT * self.head, self.end)

    @property
    def end(self) -> float:
        """How far the bent body's ends lie off its axis."""
        return 2 / 3 * self.bend * self.length

    def straight(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return positions along and across the creature's axis, from the body's centre."""
        dx, dy = x - self.x, y - self.y
        return dx * self.axis[0] + dy * self.axis[1], self.side * (dy * self.axis[0] - dx * self.axis[1])

    def bent(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the same with the body's bend taken out."""
        along, across = self.straight(x, y)
        return along, across - self.bend * (along * along / self.length - self.length / 3)

    def reach(self) -> tuple[float, float, float, float]:
        """Return a box that holds the creature: x0, y0, x1, y1."""
        nose, tail = self.length + (1 + OUT) * self.head, self.length
        belly = self.width * (1 + self.taper) + self.leg
        curve = abs(self.bend) * self.length
        corners = [self._place(a, b) for a in (-tail, nose) for b in (-self.width - curve, belly + curve)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def _place(self, along: float, across: float) -> tuple[float, float]:
        """Return the place in the image of what `straight` says is at (along, across)."""
        across *= self.side
        return (
            self.x + along * self.axis[0] - across * self.axis[1],
            self.y + along * self.axis[1] + across * self.axis[0],
        )


def draw_pose(stream: Stream, small: float, large: float) -> Pose:
    """Draw a pose that lies within the image.

    Args:
        stream: Random numbers.
        small: Least half-length of the body, a fraction of the image's side.
        large: Greatest half-length; at most 0.36, for which there is room in every direction.
    """
    length = stream.uniform(small, large)
    pose = Pose(
        x=0,
        y=0,
        axis=stream.direction(),
        length=length,
        width=length * stream.uniform(0.45, 0.7),
        taper=stream.uniform(-0.25, 0.25),
        bend=stream.uniform(-0.2, 0.2),
        legs=tuple(stream.uniform(-0.75, 0.6) for _ in range(stream.integer(2, 4))),
        leg=length * stream.uniform(0.12, 0.3),
        side=stream.choice((-1, 1)),
        head=length * stream.uniform(0.32, 0.38),
    )
    x0, y0, x1, y1 = pose.reach()
    return replace(pose, x=stream.uniform(-x0, 1 - x1), y=stream.uniform(-y0, 1 - y1))


def body_mask(pose: Pose, x: Floats, y: Floats) -> tuple[Bools, Floats]:
    """Return where the body is, legs included, (H, W), and how far out each place is: 0 at the centre, 1 at the rim."""
    along, across = pose.bent(x, y)
    u = along / pose.length
    v = across / (pose.width * (1 + pose.taper * u))
    out = u * u + v * v
    inside = (out <= 1) & (np.abs(u) <= 1)
    thickness = 0.11 * pose.length
    for place in pose.legs:
        near = np.abs(along - place * pose.length) <= thickness
        inside |= near & (across >= 0) & (across <= pose.width * (1 - place * place / 2) + pose.leg)
    return inside, out


def head_place(pose: Pose, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return positions in the head's coordinates, see `MARKS`: at the end of the bent body, itself not bent."""
    along, across = pose.straight(x, y)
    scale = FACE / pose.head
    return (along - pose.length) * scale - OUT * FACE, (across - pose.end) * scale


def body_surface(
    stream: Stream, pose: Pose, out: Floats, light: tuple[float, float], x: Floats, y: Floats, ground: Floats
) -> Floats:
    """Return the surface of a body, (H, W, 3): a texture like any other, lit from one side, dark at the rim.

    Args:
        stream: Random numbers.
        pose: Where the creature stands.
        out: From `body_mask`.
        light: Unit vector towards the light.
        x: Positions in [0, 1], (H, W).
        y: Likewise.
        ground: The background's main colour, (3,); the body's is another.
    """
    skin = colour(stream, ground)
    lit = ((x - pose.x) * light[0] + (y - pose.y) * light[1]) / pose.length
    rim = np.where((out > 0.78) & (out <= 1), 0.5, 1.0)
    return texture(stream, x, y, skin, variant(stream, skin, 0.35)) * ((1 + 0.4 * np.clip(lit, -1, 1)) * rim)[..., None]
