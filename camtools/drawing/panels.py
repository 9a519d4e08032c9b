"""Putting panels into a figure: rows of columns of images and texts, over one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camtools.checks import whole
from camtools.drawing.legend import FAINT, INK, PAPER, Bar, Colour, Key, legend
from camtools.drawing.text import font, line_height, wrapped

WIDTH = 1600  # pixels that a figure may have before its panels go to a further row
_EXTREME = 3.0  # aspect ratio from which on an image no longer has the height asked for


@dataclass(frozen=True)
class Text:
    """A text in a panel, centred, on as many lines as it needs, up to a number.

    Attributes:
        words: What is written.
        lines: At most this many; the rest is cut off.
        bold: For titles.
        colour: RGB.
        align: Where it stands in a slot that is higher: 0 at the top, 1 at the bottom.
        room: Width that its panel has at least, as a multiple of the letters' size.
    """

    words: str
    lines: int = 3
    bold: bool = False
    colour: Colour = INK
    align: float = 0.0
    room: int = 8


Slot = Image.Image | Text | None
Panel = Sequence[Slot]  # from top to bottom; the panels of a row have their slots at the same heights


def title(words: str) -> Text:
    """Return a panel's title, just above what comes next; a long one gets some room."""
    return Text(words, 5, bold=True, align=1.0, room=8 if len(words) <= 16 else 12)


def note(words: str, lines: int = 2, align: float = 0.0) -> Text:
    """Return a text that stands back: ranges, remarks."""
    return Text(words, lines, colour=FAINT, align=align)


def fit(width: int, height: int, wanted: int) -> tuple[int, int]:
    """Return the size at which an image is shown, in proportion.

    It has the height wanted, unless it is more than three times as long one way as the other: such strips become at
    most three times as long, and so thinner or higher than the others.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        wanted: Height in the figure, pixels.
    """
    aspect = width / height
    scale = wanted / height
    if aspect > _EXTREME:
        scale = _EXTREME * wanted / width
    elif aspect < 1 / _EXTREME:
        scale = min(_EXTREME * wanted / height, wanted / _EXTREME / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized(values: NDArray[np.float32], size: tuple[int, int], *, smooth: bool = True) -> NDArray[np.float32]:
    """Bring a map (H, W) to a size (width, height), averaging where it shrinks; cells stay visible if not `smooth`."""
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, method), dtype=np.float32)


def outlined(canvas: Image.Image, mask: NDArray[np.bool_], colour: Colour, width: int) -> None:
    """Draw the outline of a mask (H, W) on an image of its size: a line within the mask, with a dark one around it."""
    inner = mask
    for _ in range(width):
        inner = _eroded(inner)
    pixels = np.array(canvas)
    pixels[~_eroded(~mask) & ~_eroded(inner)] = INK
    pixels[mask & ~inner] = colour
    canvas.paste(Image.fromarray(pixels))


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Take one pixel off a mask all around; the image's border does not count as an edge."""
    padded = np.pad(mask, 1, mode="edge")
    return padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def in_rows(panels: Sequence[Panel], columns: int | None, size: int) -> list[Sequence[Panel]]:
    """Break a list of panels into rows: of so many panels, or as wide as `WIDTH` allows and about equally long.

    Args:
        panels: From left to right.
        columns: Panels in a row; None for what fits.
        size: Of the letters, pixels.

    Raises:
        InputError: `columns` is not a whole number of at least 1.
    """
    if columns is not None:
        whole("columns", columns)
        return [panels[k : k + columns] for k in range(0, len(panels), columns)]
    widths = [_width(panel, size) + size for panel in panels]
    low, high = max(widths), max(WIDTH - size, *widths)
    count = len(_filled(widths, high))
    while low < high:  # the narrowest figure with no more rows
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(widths, middle)) <= count else (middle + 1, high)
    starts = _filled(widths, high)
    return [panels[a:b] for a, b in zip(starts, [*starts[1:], len(panels)], strict=True)]


def _filled(widths: Sequence[int], limit: int) -> list[int]:
    """Return where rows start if each takes what fits."""
    starts, used = [0], 0
    for k, width in enumerate(widths):
        if used and used + width > limit:
            starts.append(k)
            used = 0
        used += width
    return starts


def _width(panel: Panel, size: int) -> int:
    """Return how wide a panel is: its images, but never too narrow for words."""
    images = [slot.width for slot in panel if isinstance(slot, Image.Image)]
    return max([8 * size, *images, *(slot.room * size for slot in panel if isinstance(slot, Text))])


def figure(
    rows: Sequence[Sequence[Panel]], entries: Sequence[Bar | Key], size: int, *, aligned: bool = True
) -> Image.Image:
    """Draw panels in rows, and one legend below.

    Texts keep within their panel's width, and slots of one row line up.

    Args:
        rows: Panels from left to right.
        entries: The legend's.
        size: Of the letters, pixels.
        aligned: Whether the rows' panels form columns.

    Returns:
        RGB image on white.
    """
    gap = size
    widths = [[_width(panel, size) for panel in row] for row in rows]
    if aligned:
        columns = [max(column) for column in zip_longest(*widths, fillvalue=0)]
        widths = [columns[: len(row)] for row in rows]
    strips = [_row(row, own, gap, size) for row, own in zip(rows, widths, strict=True)]
    width = max([20 * size, *(strip.width for strip in strips)])
    below = legend(entries, width, size, gap)
    height = sum(strip.height + 2 * gap for strip in strips)
    canvas = Image.new("RGB", (width, height + below.height), PAPER)
    y = gap
    for strip in strips:
        canvas.paste(strip, (0, y))
        y += strip.height + 2 * gap
    canvas.paste(below, (0, height))
    return canvas


def _row(panels: Sequence[Panel], widths: Sequence[int], gap: int, size: int) -> Image.Image:
    """Draw one row of panels."""
    between = round(size / 3)
    columns = [[_drawn(slot, width, size) for slot in panel] for panel, width in zip(panels, widths, strict=True)]
    levels = list(zip_longest(*columns, fillvalue=(None, 0.0)))
    heights = [max(slot.height if slot else 0 for slot, _ in level) for level in levels]
    total = sum(height + between for height in heights if height)
    canvas = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), max(1, total)), PAPER)
    y = 0
    for level, height in zip(levels, heights, strict=True):
        x = gap
        for (slot, align), width in zip(level, widths, strict=True):
            if slot:
                canvas.paste(slot, (x + (width - slot.width) // 2, y + round((height - slot.height) * align)))
            x += width + gap
        y += height + between if height else 0
    return canvas


def _drawn(slot: Slot, width: int, size: int) -> tuple[Image.Image | None, float]:
    """Return a slot as an image, and where it stands in a higher one: 0 at the top, 1 at the bottom."""
    return (_text(slot, width, size), slot.align) if isinstance(slot, Text) else (slot, 0.0)


def stacked(slots: Panel, size: int) -> Image.Image:
    """Draw slots as one: texts right under their own image, however high the others of the row are.

    Args:
        slots: From top to bottom.
        size: Of the letters, pixels.
    """
    width = _width(slots, size)
    return _row([slots], [width], 0, size)


def _text(text: Text, width: int, size: int) -> Image.Image:
    """Draw a text on white, centred in the width."""
    face = font(size, text.bold)
    lines = wrapped(text.words, face, width, text.lines)
    high = line_height(face)
    canvas = Image.new("RGB", (width, max(1, high * len(lines))), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, words in enumerate(lines):
        draw.text(((width - face.getlength(words)) // 2, i * high), words, fill=text.colour, font=face)
    return canvas
