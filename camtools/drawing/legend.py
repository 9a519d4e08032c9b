"""Legends: colour bars with their scale, and what lines and areas stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from camtools.drawing.colours import Colour
from camtools.drawing.text import font, line_height, wrapped

PAPER = (255, 255, 255)
INK = (0, 0, 0)
FAINT = (110, 110, 110)


@dataclass(frozen=True)
class Bar:
    """A colour bar.

    Attributes:
        title: What the colours stand for.
        colormap: Name of a matplotlib colour map.
        ticks: What is written below, as (position in [0, 1], text); the first at 0, the last at 1.
        mark: A position in [0, 1] that a line across the bar marks, and the text for it; None for none.
    """

    title: str
    colormap: str
    ticks: tuple[tuple[float, str], ...] = ((0.0, "0"), (1.0, "1"))
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Key:
    """What a line or an area stands for; without a colour it is a plain remark.

    Attributes:
        text: The explanation.
        colour: RGB; None draws no swatch.
        dashed: Whether the line is dashed.
    """

    text: str
    colour: Colour | None = None
    dashed: bool = False


def draw_box(
    draw: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, width: int, *, dashed: bool = False
) -> None:
    """Draw a rectangle's lines within the box, with a dark line around them that keeps them visible on any ground.

    Args:
        draw: Where to draw.
        box: xyxy in whole pixels, half-open.
        colour: RGB of the lines.
        width: Of the lines, pixels.
        dashed: Leave gaps, in which the dark ground shows.
    """
    x0, y0, x1, y1 = (round(value) for value in box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=width + 2)
    if not dashed:
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
        return
    for first, last in _dashes(x1 - x0, width):
        for y in (y0, max(y0, y1 - width)):
            draw.rectangle((x0 + first, y, x0 + last - 1, min(y + width, y1) - 1), fill=colour)
    for first, last in _dashes(y1 - y0, width):
        for x in (x0, max(x0, x1 - width)):
            draw.rectangle((x, y0 + first, min(x + width, x1) - 1, y0 + last - 1), fill=colour)


def _dashes(length: int, width: int) -> list[tuple[int, int]]:
    """Cut a line into dashes, half-open, with one at either end so that corners are whole."""
    count = max(1, round((length / (4 * width) + 1) / 2))
    dash = length / (2 * count - 1)
    return [(round(2 * i * dash), max(round(2 * i * dash) + 1, round((2 * i + 1) * dash))) for i in range(count)]


def legend(entries: Sequence[Bar | Key], width: int, size: float, margin: int | None = None) -> Image.Image:
    """Draw a legend on white: entries from left to right, on as many rows as it takes.

    Args:
        entries: What to explain.
        width: Of the result, pixels.
        size: Of the letters, pixels.
        margin: Left free on all sides, pixels; half of `size` by default.
    """
    margin = round(size / 2) if margin is None else margin
    room = max(1, width - 2 * margin)
    drawn = [_bar(entry, room, size) if isinstance(entry, Bar) else _key(entry, room, size) for entry in entries]
    rows: list[list[Image.Image]] = []
    gap = round(1.5 * size)
    for entry in drawn:
        if rows and sum(image.width + gap for image in rows[-1]) + entry.width <= room:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    heights = [max(image.height for image in row) for row in rows]
    canvas = Image.new("RGB", (width, sum(heights) + margin * (len(rows) + 1)), PAPER)
    y = margin
    for row, height in zip(rows, heights, strict=True):
        x = margin
        for image in row:
            canvas.paste(image, (x, y + (height - image.height) // 2))
            x += image.width + gap
        y += height + margin
    return canvas


def _bar(bar: Bar, room: int, size: float) -> Image.Image:
    """Draw a colour bar under its title, with its scale below."""
    face = font(size)
    line, width = line_height(face), max(2, min(room, round(15 * size)))
    title = wrapped(bar.title, face, width, 2)
    thick = max(4, round(0.9 * size))
    edge = max(1, round(size / 16))
    top = line * len(title) + round(size / 5)
    canvas = Image.new("RGB", (width, top + thick + round(size / 4) + line), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, words in enumerate(title):
        draw.text((0, i * line), words, fill=INK, font=face)
    colours = matplotlib.colormaps[bar.colormap](np.linspace(0, 1, width))[:, :3] * 255
    canvas.paste(Image.fromarray(np.broadcast_to(np.rint(colours).astype(np.uint8), (thick, width, 3))), (0, top))
    low = top + thick + round(size / 4)
    taken = []  # (first, last) pixel of what is written, so that nothing is written over it
    for position, text in bar.ticks:
        length = face.getlength(text)
        x = min(max(position * (width - 1) - length / 2, 0), width - length)
        draw.text((x, low), text, fill=INK, font=face)
        taken.append((x, x + length))
    if bar.mark is not None:
        position, text = bar.mark
        x = round(position * (width - 1))
        draw.rectangle((x - 2 * edge, top, x + 2 * edge, top + thick - 1), fill=PAPER)
        draw.rectangle((x - edge + 1, top - edge, x + edge - 1, low), fill=INK)
        left, right = taken[0][1] + size / 2, taken[-1][0] - size / 2
        for words in (text, text.rpartition(" ")[2]):  # as near to the mark as there is room
            length = face.getlength(words)
            if length <= right - left:
                draw.text((min(max(x - length / 2, left), right - length), low), words, fill=INK, font=face)
                break
    return canvas


def _key(key: Key, room: int, size: float) -> Image.Image:
    """Draw a swatch and its explanation."""
    face = font(size)
    line = line_height(face)
    high = round(0.9 * size)
    swatch = round(2 * size)
    indent = 0 if key.colour is None else swatch + round(size / 2)
    lines = wrapped(key.text, face, max(1, room - indent), 4)
    width = indent + math.ceil(max((face.getlength(words) for words in lines), default=0))
    canvas = Image.new("RGB", (max(1, min(width, room)), max(1, line * len(lines))), PAPER)
    draw = ImageDraw.Draw(canvas)
    if key.colour is not None:
        top = (line - high) // 2
        thick = max(2, round(size / 7))
        draw_box(draw, (1, top, swatch, top + high), key.colour, thick, dashed=key.dashed)
    for i, words in enumerate(lines):
        draw.text((indent, i * line), words, fill=INK, font=face)
    return canvas
