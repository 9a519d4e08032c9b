"""Drawing a map, boxes and a caption over a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from camtools.errors import InputError

BOX = (80, 255, 120)
INK = (0, 0, 0)


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
        text: Caption, written at the first box, or at the top where there is none.
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
    width = max(1, round(max(canvas.size) / 200))
    for x0, y0, x1, y1 in boxes:
        # A dark line around the bright one keeps it visible on any ground.
        draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=INK, width=width + 2)
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=BOX, width=width)
    if text:
        _caption(draw, canvas.size, boxes[0][:2] if boxes else (0, 0), text)
    return canvas


def _caption(draw: ImageDraw.ImageDraw, size: tuple[int, int], corner: Sequence[int], text: str) -> None:
    """Write the text above a corner, inside the picture, shortened to its width."""
    font = ImageFont.load_default(size=float(max(10, min(28, round(max(size) / 26)))))
    shown = text
    while len(shown) > 4 and draw.textlength(shown, font=font) + 6 > size[0]:
        # Keep the score at the end; shorten the name before it.
        name, _, score = shown.rpartition(" ")
        shown = f"{name.rstrip('…')[:-1]}… {score}" if len(name) > 2 else shown[:-1]
    left, _, right, bottom = draw.textbbox((0, 0), shown, font=font)
    height = bottom + 4
    x = int(min(max(0, corner[0]), max(0, size[0] - (right - left) - 6)))
    y = int(corner[1]) - height if corner[1] >= height else int(corner[1])
    draw.rectangle((x, y, x + (right - left) + 5, y + height - 1), fill=BOX)
    draw.text((x + 3, y + 1), shown, fill=INK, font=font)
