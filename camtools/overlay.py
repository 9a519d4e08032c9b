"""Drawing a map, boxes and a caption over a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from camtools.errors import InputError

BOX = (80, 255, 120)
INK = (0, 0, 0)
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # Latin, Greek, Cyrillic and more


def draw_overlay(
    image: Image.Image,
    map: NDArray[np.float32],
    boxes: Sequence[Sequence[int]],
    text: str,
    alpha: float = 0.5,
    colormap: str = "inferno",
) -> Image.Image:
    """Blend a map over a picture and draw boxes and a caption.

    Args:
        image: RGB, of any size.
        map: (H, W) in [0, 1], of the picture's size.
        boxes: xyxy in pixels, half-open.
        text: Caption, name and then score, written at the first box, or at the top where there is none. The name is
            shortened to the picture's width; a picture too small for a caption goes without.
        alpha: Weight of the map's colours, in [0, 1].
        colormap: Name of a matplotlib colour map; "inferno" is perceptually uniform and readable in grey.

    Returns:
        A new RGB picture of the same size.

    Raises:
        InputError: `alpha` is out of range, or the colour map is unknown.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha={alpha}: expected a weight between 0 (picture only) and 1 (map only)")
    if colormap not in matplotlib.colormaps:
        raise InputError(f"colormap={colormap!r} is not one of matplotlib's; try 'inferno', 'viridis' or 'magma'")
    colours = matplotlib.colormaps[colormap](np.asarray(map, dtype=np.float32))[..., :3] * 255
    blended = (1 - alpha) * np.asarray(image.convert("RGB"), dtype=np.float32) + alpha * colours
    canvas = Image.fromarray(np.rint(blended).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    side = math.sqrt(canvas.width * canvas.height)
    width = max(1, round(side / 150))
    for x0, y0, x1, y1 in boxes:
        # A dark line around the bright one keeps it visible on any ground.
        draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=width + 2)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=BOX, width=width)
    _caption(draw, canvas.size, boxes[0] if boxes else (0, 0, 0, 0), text, max(10.0, side / 22))
    return canvas


def _caption(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Sequence[int], text: str, font_size: float) -> None:
    """Write the text above a box, or below or in it where there is no room; never beyond the picture."""
    font = ImageFont.truetype(FONT, font_size)
    ascent, descent = font.getmetrics()
    height = ascent + descent + 2
    shown = _shortened(text, lambda words: draw.textlength(words, font=font) + 6 <= size[0])
    if not shown or 3 * height > size[1]:  # a picture this small would vanish behind it
        return
    width = math.ceil(draw.textlength(shown, font=font)) + 6
    x0, y0, _, y1 = map(int, box)
    x = max(0, min(x0, size[0] - width))
    y = next((y for y in (y0 - height, y1) if 0 <= y <= size[1] - height), max(0, min(y0, size[1] - height)))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=BOX)
    draw.text((x + 3, y + 1), shown, fill=INK, font=font)


def _shortened(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text on one line, its words but the last (the score) cut until it fits; empty if nothing does."""
    text = " ".join(text.split())
    name, _, score = text.rpartition(" ")
    cuts = (f"{name[:length].rstrip()}… {score}" for length in range(len(name) - 1, 0, -1))
    return next((shown for shown in (text, *cuts, score) if fits(shown)), "")
