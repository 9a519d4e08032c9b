"""One scene: ground, distractors, creatures, light and camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camtools.datasets.scenes.creature import (
    FACE,
    MARKS,
    Pose,
    body_mask,
    body_surface,
    draw_pose,
    face,
    head_place,
    head_surface,
)
from camtools.datasets.scenes.drawing import Bools, Canvas, Floats, Stream, colour, texture, value_noise, variant


@dataclass(frozen=True, eq=False)
class Creature:
    """One object of a scene.

    Attributes:
        label: Class index.
        mask: Its visible pixels, head included, (H, W).
        head: The visible pixels of its head, (H, W).
        pose: Where it stands.
    """

    label: int
    mask: Bools
    head: Bools
    pose: Pose

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the mask in pixels, half-open."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene.

    Attributes:
        pixels: RGB, (H, W, 3) uint8.
        creatures: The objects, those behind first.
    """

    pixels: NDArray[np.uint8]
    creatures: tuple[Creature, ...]


def draw_scene(stream: Stream, labels: list[int], size: int) -> Scene:
    """Draw one scene.

    Args:
        stream: Random numbers; the same stream draws the same scene at every size, up to the camera's noise.
        labels: The class of every creature.
        size: Side of the square image in pixels.
    """
    canvas = Canvas.blank(size)
    ground, light = colour(stream), stream.direction()
    canvas.pixels[:] = texture(stream, canvas.x, canvas.y, ground, variant(stream, ground, 0.3))
    poses = _poses(stream, len(labels))
    for _ in range(stream.integer(2, 5)):
        _distractor(stream, canvas, ground, light)
    for _ in range(stream.integer(0, 1)):
        _stray_head(stream, canvas, poses)
    creatures: list[Creature] = []
    for label, pose in zip(labels, poses, strict=True):
        window = canvas.window(*pose.reach())
        body, out = body_mask(pose, window.x, window.y)
        window.paint(body, body_surface(stream, pose, out, light, window.x, window.y, ground))
        place = head_place(pose, window.x, window.y)
        head = face(*place)
        window.paint(head, head_surface(stream, label, *place))
        mask, head = window.whole(body | head, size), window.whole(head, size)
        creatures = [Creature(c.label, c.mask & ~mask, c.head & ~mask, c.pose) for c in creatures]
        creatures.append(Creature(label, mask, head, pose))
    return Scene(_photograph(stream, canvas, light), tuple(creatures))


def _poses(stream: Stream, count: int) -> list[Pose]:
    """Draw poses; of several creatures, bodies may hide each other in part, but never a head."""
    small, large = (0.17, 0.36) if count == 1 else (0.12, 0.22)
    poses: list[Pose] = []
    for _ in range(count):
        for attempt in range(300):
            crowding = 1 - attempt / 600
            pose = draw_pose(stream, small * crowding, large * crowding)
            if all(_clear(pose, other) and _clear(other, pose) for other in poses):
                break
        poses.append(pose)
    return poses


def _clear(a: Pose, b: Pose) -> bool:
    """Whether one creature's head lies clear of another creature, and their centres apart."""
    (x, y), (bx, by) = a.nose, b.nose
    centres = _within(a.x - b.x, a.y - b.y, 0.8 * (a.length + b.length))
    body = _within(x - b.x, y - b.y, 1.05 * b.length + a.head)
    heads = _within(x - bx, y - by, a.head + b.head)
    return not (centres or body or heads)


def _within(dx: float, dy: float, distance: float) -> bool:
    """Whether a step is shorter than a distance; by products, which are exact where powers need not be."""
    return dx * dx + dy * dy < distance * distance


def _distractor(stream: Stream, canvas: Canvas, ground: Floats, light: tuple[float, float]) -> None:
    """Draw a stone or a stick: as large as creatures' parts and coloured like them, without a class."""
    dx, dy = stream.direction()
    cx, cy = stream.uniform(0, 1), stream.uniform(0, 1)
    stone = stream.chance(0.5)
    a = stream.uniform(0.05, 0.14) if stone else stream.uniform(0.08, 0.25)
    b = stream.uniform(0.04, 0.1) if stone else stream.uniform(0.008, 0.02)
    reach = max(a, b) + min(a, b)
    window = canvas.window(cx - reach, cy - reach, cx + reach, cy + reach)
    u = (window.x - cx) * dx + (window.y - cy) * dy
    v = (window.y - cy) * dx - (window.x - cx) * dy
    base = colour(stream, ground)
    surface = texture(stream, window.x, window.y, base, variant(stream, base, 0.35))
    if stone:
        shade = 1 + 0.3 * np.clip(((window.x - cx) * light[0] + (window.y - cy) * light[1]) / a, -1, 1)
        window.paint(u * u / (a * a) + v * v / (b * b) <= 1, surface * shade[..., None])
    else:
        window.paint((np.abs(u) <= a) & (np.abs(v) <= b), surface)


def _stray_head(stream: Stream, canvas: Canvas, poses: list[Pose]) -> None:
    """Draw a head of any class that lies about without a body: only a head on a body counts."""
    radius, (dx, dy) = stream.uniform(0.05, 0.09), stream.direction()
    cx, cy = stream.uniform(0.1, 0.9), stream.uniform(0.1, 0.9)
    label = stream.integer(0, len(MARKS) - 1)
    if any(_within(cx - pose.x, cy - pose.y, 1.9 * pose.length) for pose in poses):
        return
    window = canvas.window(cx - radius, cy - radius, cx + radius, cy + radius)
    scale = FACE / radius
    u = ((window.x - cx) * dx + (window.y - cy) * dy) * scale
    v = ((window.y - cy) * dx - (window.x - cx) * dy) * scale
    window.paint(face(u, v), head_surface(stream, label, u, v))


def _photograph(stream: Stream, canvas: Canvas, light: tuple[float, float]) -> NDArray[np.uint8]:
    """Light the scene from one side, with soft shadows, and take its image: colour cast, lens blur, noise."""
    slope, exposure = stream.uniform(0, 0.5), stream.uniform(0.7, 1.15)
    shadow = 1 - stream.uniform(0, 0.35) * value_noise(stream, canvas.x, canvas.y, 3)
    bright = exposure * (1 + slope * ((canvas.x - 0.5) * light[0] + (canvas.y - 0.5) * light[1])) * shadow
    image = canvas.pixels * bright[..., None] * (0.9 + 0.2 * stream.array(3))
    image = _blur(_blur(image).swapaxes(0, 1)).swapaxes(0, 1)
    noise = stream.uniform(0.005, 0.03)
    image = image + noise * (stream.array(*image.shape) - stream.array(*image.shape))
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(image: Floats) -> Floats:
    """Average neighbouring rows by 1, 2, 1."""
    padded = np.concatenate([image[:1], image, image[-1:]])
    return (padded[:-2] + 2 * image + padded[2:]) / 4
