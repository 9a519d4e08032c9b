"""Drawing a map, boxes, a caption and a legend over an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camtools.drawing.legend import INK, PAPER, Bar, Key, draw_box, legend
from camtools.drawing.text import font
from camtools.errors import InputError

BOX = (80, 255, 120)
_ROWS = 64  # that are coloured together, in the processor's cache
TRUTH = (70, 180, 255)  # blue against the prediction's green; dashed as well, for readers without colours


def draw_overlay(
    image: Image.Image,
    map: NDArray[np.float32],
    boxes: Sequence[Sequence[int]],
    text: str,
    alpha: float = 0.5,
    colormap: str = "inferno",
    *,
    threshold: float | None = None,
    key: str | None = None,
    seen: Sequence[int] | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Blend a map over an image and draw boxes and a caption; with a legend where there is something to say.

    Args:
        image: RGB, of any size.
        map: (H, W) in [0, 1], of the image's size.
        boxes: xyxy in pixels, half-open.
        text: Caption, name and then score, written at the first box, or at the top where there is none. The name is
            shortened to the image's width, and an image too small for a caption goes without; a legend then has the
            whole of it.
        alpha: Weight of the map's colours, in [0, 1].
        colormap: Name of a matplotlib colour map; "inferno" is perceptually uniform and readable in grey.
        threshold: What the map was compared with; marked on the legend's colour bar.
        key: What the legend says of the boxes. Where this and `threshold` are None there is no legend.
        seen: The part of the image that the model saw, xyxy in pixels; the rest is hatched. None for all of it.
        notes: What is written at the boxes after the first.

    Returns:
        A new RGB image of the same size. With a legend it is larger: the legend is on white below the image, or
        beside one that is too narrow for it. The image is at the top left in any case.

    Raises:
        InputError: `alpha` is out of range, or the colour map is unknown.
    """
    canvas = blend(image, map, alpha, colormap)
    if seen is not None:
        canvas = hatched(canvas, seen)
    draw = ImageDraw.Draw(canvas)
    side = math.sqrt(canvas.width * canvas.height)
    width = max(1, round(side / 150))
    for box in boxes:
        draw_box(draw, box, BOX, width)
    for box, words in zip(boxes[1:], notes, strict=True):
        _caption(draw, canvas.size, box, words, max(10.0, side / 30))
    shown = _caption(draw, canvas.size, boxes[0] if boxes else (0, 0, 0, 0), text, max(10.0, side / 22))
    if threshold is None and key is None:
        return canvas
    mark = None if threshold is None or not 0 <= threshold <= 1 else (threshold, f"threshold {threshold:.2f}")
    entries: list[Bar | Key] = [Bar("class map, normalised", colormap, mark=mark)]
    if key is not None:
        entries.append(Key(key, BOX if boxes else None))
    if seen is not None:
        entries.append(Key("hatched: not seen by the model"))
    if shown != " ".join(text.split()):
        entries.append(Key(text))
    return with_legend(canvas, entries, max(11, round(side / 34)))


def blend(image: Image.Image, map: NDArray[np.float32], alpha: float, colormap: str) -> Image.Image:
    """Mix an image and a map's colours.

    Args:
        image: Of any mode.
        map: (H, W) in [0, 1], of the image's size.
        alpha: Weight of the map's colours, in [0, 1].
        colormap: Name of a matplotlib colour map.

    Returns:
        A new RGB image.

    Raises:
        InputError: `alpha` is out of range, or the colour map is unknown.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: expected a weight between 0 (image only) and 1 (map only)")
    if colormap not in matplotlib.colormaps:
        raise InputError(f"colormap={colormap!r} is not one of matplotlib's; try 'inferno', 'viridis' or 'magma'")
    pixels = np.array(image.convert("RGB"))
    levels = matplotlib.colormaps[colormap]
    colours = np.float32(alpha) * 255 * levels(np.arange(levels.N))[:, :3].astype(np.float32)
    own = np.float32(1 - alpha) * np.arange(256, dtype=np.float32) + np.float32(0.5)
    for start in range(0, len(pixels), _ROWS):
        rows = slice(start, start + _ROWS)
        level = (np.asarray(map[rows], dtype=np.float32) * levels.N).astype(np.intp).clip(0, levels.N - 1)
        pixels[rows] = own[pixels[rows]] + colours[level]
    return Image.fromarray(pixels)


def hatched(image: Image.Image, seen: Sequence[int]) -> Image.Image:
    """Draw diagonal lines over all of an image but a box, xyxy in pixels."""
    step = max(6, round(math.sqrt(image.width * image.height) / 40))
    lines = image.copy()
    draw = ImageDraw.Draw(lines)
    for start in range(-image.height, image.width, step):
        draw.line((start, image.height, start + image.height, 0), fill=(255, 255, 255), width=max(1, step // 8))
    x0, y0, x1, y1 = seen
    lines.paste(image.crop((x0, y0, x1, y1)), (x0, y0))
    return lines


def with_legend(image: Image.Image, entries: Sequence[Bar | Key], size: int) -> Image.Image:
    """Put a legend below an image, or beside it where the image is too narrow and tall enough."""
    block = legend(entries, max(image.width, 13 * size), size)  # narrower, its words would be broken
    beside = block.width > image.width and block.height <= image.height
    place = (image.width, 0) if beside else (0, image.height)
    canvas = Image.new("RGB", (place[0] + block.width, max(image.height, place[1] + block.height)), PAPER)
    canvas.paste(image, (0, 0))
    canvas.paste(block, place)
    return canvas


def _caption(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Sequence[int], text: str, font_size: float) -> str:
    """Write the text above a box, or below or in it where there is no room; never beyond the image.

    Returns what was written: the text on one line, shortened where needed; empty where the image is too small.
    """
    face = font(font_size)
    ascent, descent = face.getmetrics()
    height = ascent + descent + 2
    shown = _shortened(text, lambda words: draw.textlength(words, font=face) + 6 <= size[0])
    if not shown or 3 * height > size[1]:  # an image this small would vanish behind it
        return ""
    width = math.ceil(draw.textlength(shown, font=face)) + 6
    x0, y0, _, y1 = map(int, box)
    x = max(0, min(x0, size[0] - width))
    y = next((y for y in (y0 - height, y1) if 0 <= y <= size[1] - height), max(0, min(y0, size[1] - height)))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=BOX)
    draw.text((x + 3, y + 1), shown, fill=INK, font=face)
    return shown


def _shortened(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text on one line, its words but the last (the score) cut until it fits; empty if nothing does."""
    text = " ".join(text.split())
    name, _, score = text.rpartition(" ")
    cuts = (f"{name[:length].rstrip()}… {score}" for length in range(len(name) - 1, 0, -1))
    return next((shown for shown in (text, *cuts, score) if fits(shown)), "")
