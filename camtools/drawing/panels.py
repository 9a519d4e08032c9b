"""Putting panels into a figure: rows of images and texts, over one legend.

Contact sheets, `camtools.plot.compare` and `plot_trace` are such figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation, binary_erosion

from camtools.checks import whole
from camtools.drawing.colours import Colour
from camtools.drawing.legend import FAINT, INK, PAPER, Bar, Key, draw_box, legend
from camtools.drawing.overlay import BOX, TRUTH, blend
from camtools.drawing.text import font, line_height, wrapped

WIDTH = 1600  # pixels that a figure may have before its panels go to a further row
_EXTREME = 3.0  # aspect ratio from which on an image no longer has the height asked for


@dataclass(frozen=True)
class Text:
    """A text in a panel, on as many lines as it needs, up to a number; or a heading over rows.

    Attributes:
        words: What is written.
        lines: At most this many; the rest is cut off.
        bold: For titles.
        colour: RGB.
        align: Where it stands in a slot that is higher: 0 at the top, 1 at the bottom.
        room: Width that its panel has at least, as a multiple of the letters' size.
        left: Whether lines begin at the left edge; otherwise they are centred.
        scale: Size of its letters, as a multiple of the others'.
    """

    words: str
    lines: int = 3
    bold: bool = False
    colour: Colour = INK
    align: float = 0.0
    room: int = 8
    left: bool = False
    scale: float = 1.0


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
    scale = min(wanted / height, _EXTREME * wanted / width)  # a long strip is thinner, a high one higher
    scale = max(scale, min(_EXTREME * wanted / height, wanted / _EXTREME / width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def thumbnail(
    image: Image.Image,
    size: tuple[int, int],
    map: NDArray[np.float32] | None = None,
    *,
    boxes: Iterable[Sequence[float]] = (),
    truth: Iterable[Sequence[float]] = (),
    mask: NDArray[np.bool_] | None = None,
    line: int = 2,
    alpha: float = 0.5,
    colormap: str = "inferno",
) -> Image.Image:
    """Draw an image at its size in a figure, so that lines are crisp, with what is known and predicted over it.

    Args:
        image: Of any size and mode.
        size: (width, height) of the result, pixels.
        map: Blended over the image, (h, w) in [0, 1] of any size; None for the plain image.
        boxes: Predicted ones, xyxy in the image's pixels, half-open.
        truth: True ones, which are dashed.
        mask: True pixels, (H, W), whose outline is drawn.
        line: Width of the lines, pixels.
        alpha: Weight of the map's colours, in [0, 1].
        colormap: Name of a matplotlib colour map.

    Returns:
        A new RGB image.
    """
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if map is not None:
        canvas = blend(canvas, resized(map, size).clip(0, 1), alpha, colormap)
    if mask is not None:
        outlined(canvas, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)), TRUTH, line)
    draw_boxes(canvas, truth, image.size, TRUTH, line, dashed=True)
    draw_boxes(canvas, boxes, image.size, BOX, line)
    return canvas


def draw_boxes(
    canvas: Image.Image,
    boxes: Iterable[Sequence[float]],
    size: tuple[int, int],
    colour: Colour,
    line: int,
    *,
    dashed: bool = False,
) -> None:
    """Draw boxes on an image that is shown larger or smaller than the (width, height) whose pixels they count."""
    scale = np.array([canvas.width / size[0], canvas.height / size[1]] * 2)
    for box in boxes:
        draw_box(ImageDraw.Draw(canvas), np.rint(np.asarray(box) * scale).tolist(), colour, line, dashed=dashed)


def resized(values: NDArray[np.float32], size: tuple[int, int], *, smooth: bool = True) -> NDArray[np.float32]:
    """Bring a map (H, W) to a size (width, height), averaging where it shrinks; cells stay visible if not `smooth`."""
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, method), dtype=np.float32)


def outlined(canvas: Image.Image, mask: NDArray[np.bool_], colour: Colour, width: int) -> None:
    """Draw the outline of a mask (H, W) on an image of its size: a line within the mask, with a dark one around it."""
    inner = binary_erosion(mask, iterations=width, border_value=1)  # the image's border does not count as an edge
    pixels = np.array(canvas)
    pixels[binary_dilation(mask) & ~binary_erosion(inner, border_value=1)] = INK
    pixels[mask & ~inner] = colour
    canvas.paste(Image.fromarray(pixels))


def in_rows(panels: Sequence[Panel], columns: int | None, size: int) -> list[Sequence[Panel]]:
    """Break a list of panels into rows: of so many panels, or about equally many in as few rows as `WIDTH` allows.

    Args:
        panels: From left to right.
        columns: Panels per row; None for what fits.
        size: Of the letters, pixels.

    Raises:
        InputError: `columns` is not a whole number of at least 1.
    """
    if columns is not None:
        whole("columns", columns)
        return [panels[k : k + columns] for k in range(0, len(panels), columns)]
    widths = [_width(panel, size) + size for panel in panels]
    for count in range(1, len(panels) + 1):
        parts = np.array_split(np.arange(len(panels)), count)
        if max(sum(widths[k] for k in part) for part in parts) <= WIDTH - size:
            break
    return [[panels[k] for k in part] for part in parts]


def _width(panel: Panel, size: int) -> int:
    """Return how wide a panel is: its images, but never too narrow for words."""
    images = [slot.width for slot in panel if isinstance(slot, Image.Image)]
    return max([8 * size, *images, *(slot.room * size for slot in panel if isinstance(slot, Text))])


def figure(
    rows: Sequence[Sequence[Panel] | Text], entries: Sequence[Bar | Key], size: int, *, aligned: bool = True
) -> Image.Image:
    """Draw panels in rows, and one legend below.

    Texts keep within their panel's width, and slots of one row line up.

    Args:
        rows: Panels from left to right, or a heading.
        entries: The legend's.
        size: Of the letters, pixels.
        aligned: Whether the rows' panels form columns.

    Returns:
        RGB image on white.
    """
    widths = [[] if isinstance(row, Text) else [_width(panel, size) for panel in row] for row in rows]
    if aligned:
        columns = [max(column) for column in zip_longest(*widths, fillvalue=0)]
        widths = [columns[: len(row)] for row in widths]
    least = [size * (row.room if isinstance(row, Text) else 20) for row in rows]
    width = max([*least, *(sum(row) + size * (len(row) + 1) for row in widths)])
    strips = []
    for row, own in zip(rows, widths, strict=True):
        panels, own = ([[row]], [width - 2 * size]) if isinstance(row, Text) else (row, own)
        strips.append(strip(panels, own, size, size))
    below = legend(entries, width, size, size)
    height = sum(image.height + 2 * size for image in strips)
    canvas = Image.new("RGB", (width, height + below.height), PAPER)
    y = size
    for image in strips:
        canvas.paste(image, (size, y))
        y += image.height + 2 * size
    canvas.paste(below, (0, height))
    return canvas


def stacked(slots: Panel, size: int) -> Image.Image:
    """Draw slots as one: texts right under their own image, however high the others of the row are.

    Args:
        slots: From top to bottom.
        size: Of the letters, pixels.
    """
    return strip([slots], [_width(slots, size)], 0, size)


def strip(panels: Sequence[Panel], widths: Sequence[int], gap: int, size: int) -> Image.Image:
    """Draw one row of panels, which have their slots at the same heights.

    Args:
        panels: From left to right.
        widths: Of the panels, pixels.
        gap: Between them, pixels.
        size: Of the letters, pixels.
    """
    between = round(size / 3)
    columns = [
        [(_text(slot, width, size), slot.align) if isinstance(slot, Text) else (slot, 0.0) for slot in panel]
        for panel, width in zip(panels, widths, strict=True)
    ]
    levels = list(zip_longest(*columns, fillvalue=(None, 0.0)))
    heights = [max(image.height if image else 0 for image, _ in level) for level in levels]
    total = sum(height + between for height in heights if height)
    canvas = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), max(1, total)), PAPER)
    y = 0
    for level, height in zip(levels, heights, strict=True):
        x = 0
        for (image, align), width in zip(level, widths, strict=True):
            if image:
                canvas.paste(image, (x + (width - image.width) // 2, y + round((height - image.height) * align)))
            x += width + gap
        y += height + between if height else 0
    return canvas


def _text(text: Text, width: int, size: int) -> Image.Image:
    """Draw a text on white, in the width."""
    face = font(round(text.scale * size), text.bold)
    lines = wrapped(text.words, face, width, text.lines)
    high = line_height(face)
    canvas = Image.new("RGB", (width, max(1, high * len(lines))), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, words in enumerate(lines):
        x = 0 if text.left else (width - face.getlength(words)) // 2
        draw.text((x, i * high), words, fill=text.colour, font=face)
    return canvas
