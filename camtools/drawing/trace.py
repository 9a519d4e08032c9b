"""What every step of a pipeline made of the map, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camtools.checks import whole
from camtools.drawing.legend import Bar, Key
from camtools.drawing.overlay import BOX, blend
from camtools.drawing.panels import Panel, Text, draw_boxes, figure, fit, in_rows, note, outlined, resized, title
from camtools.errors import InputError
from camtools.pipeline.trace import TraceStep

SIGNED = "RdBu_r"  # blue against the class, red for it
CHANGE = "PuOr_r"  # purple less, orange more; both pairs are told apart by colour-blind readers
_EDGE = (255, 255, 255)
_SAME = 1e-5  # of the range: what float32 arithmetic may differ by


def draw_trace(
    image: Image.Image,
    trace: Sequence[TraceStep],
    boxes: Sequence[Sequence[int]],
    name: str,
    score: float,
    height: int,
    columns: int | None,
    colormap: str,
) -> Image.Image:
    """Draw what `Explanation.plot_trace` documents.

    Args:
        image: The original, RGB.
        trace: The maps after every step.
        boxes: Drawn with the mask, xyxy in the image's pixels, half-open.
        name: Of the class.
        score: Its probability.
        height: Of a thumbnail, pixels.
        columns: Thumbnails per row; None fits them into about 1,600 pixels.
        colormap: Name of a matplotlib colour map, for normalised maps.

    Returns:
        RGB image.

    Raises:
        InputError: There is no trace, or an argument cannot be used.
    """
    if not trace:
        raise InputError(
            "this explanation has no trace: the map after every step was not kept. Explain with trace=True: "
            "explain(model, image, trace=True) or Explainer(model, trace=True)"
        )
    whole("height", height, 16)
    small = image.resize(fit(image.width, image.height, height), Image.Resampling.LANCZOS)
    panels: list[Panel] = [[title(name), small, note(f"{image.height} × {image.width}\nscore {score:.1%}")]]
    before: TraceStep | None = None
    for step in trace:
        values = step.map.cpu().numpy()
        about = f"{values.shape[0]} × {values.shape[1]}\n{_number(values.min())} to {_number(values.max())}"
        if step.mask is not None:
            shown = _masked(small, step.mask.cpu().numpy())
            draw_boxes(shown, boxes, image.size, BOX, max(2, round(shown.height / 110)))
            about = f"mask keeps {step.mask.float().mean().item():.1%}"
        elif step.normalised:
            shown = _coloured(values, height, colormap)
        else:  # diverging about 0
            shown = _coloured(0.5 + values / (2 * (float(np.abs(values).max()) or 1.0)), height, SIGNED)
        panels.append([title(step.step), shown, note(about), *_change(before, step, height)])
        before = step
    size = max(12, round(height / 13))
    return figure(in_rows(panels, columns, size), _legend(trace, colormap, panels), size, aligned=False)


def _masked(image: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """Draw a mask over the image: what is left out is pale."""
    mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image, dtype=np.float32)
    pale = 0.3 * pixels.mean(2, keepdims=True)
    canvas = Image.fromarray(np.where(mask[..., None], pixels, pale).astype(np.uint8))
    outlined(canvas, mask, _EDGE, 1)
    return canvas


def _coloured(values: NDArray[np.floating[Any]], height: int, colormap: str) -> Image.Image:
    """Draw values in [0, 1]; the cells of a small grid stay visible."""
    rows, columns = values.shape
    size = fit(columns, rows, height)
    scaled = resized(values.astype(np.float32), size, smooth=rows > height / 3 or columns > height / 3).clip(0, 1)
    return blend(Image.new("RGB", size), scaled, 1.0, colormap)


def _number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and a true minus sign."""
    return f"{float(value):.{digits}g}".replace("-", "−")


def _change(before: TraceStep | None, after: TraceStep, height: int) -> list[Text | Image.Image]:
    """Say or show how a map differs from the one before."""
    if before is None:
        return [note("the first map", 3, 0.5)]
    if before.map.shape != after.map.shape:
        return [note("the same map on the image’s pixels", 4, 0.5)]
    old, new = before.map.cpu().numpy(), after.map.cpu().numpy()
    if np.array_equal(old, new):
        return [note("map unchanged" if after.mask is not None else "unchanged", 3, 0.5)]
    if not (before.normalised and after.normalised):
        old, new = _normalised(old), _normalised(new)
    difference = new - old
    most = float(np.abs(difference).max())
    if most <= _SAME:
        return [note("unchanged but for its scale", 3, 0.5)]
    drawn = _coloured(0.5 + difference / (2 * most), height, CHANGE)
    return [drawn, note(f"{_number(difference.min(), 2)} to {_number(difference.max(), 2)}", 2)]


def _normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring a map to [0, 1]; one without contrast is all zeros."""
    low, span = values.min(), values.max() - values.min()
    return np.asarray((values - low) / span if span > 0 else np.zeros_like(values), dtype=np.float32)


def _legend(trace: Sequence[TraceStep], colormap: str, panels: Sequence[Panel]) -> list[Bar | Key]:
    """Explain the colours that occur."""
    entries: list[Bar | Key] = []
    if any(not step.normalised for step in trace):
        ticks = ((0.0, "−max |M|"), (0.5, "0"), (1.0, "max |M|"))
        entries.append(Bar("signed map M, own scale", SIGNED, ticks))
    if any(step.normalised and step.mask is None for step in trace):
        entries.append(Bar("normalised map", colormap))
    if any(isinstance(slot, Image.Image) for panel in panels for slot in panel[3:]):
        entries.append(Bar("change, own scale", CHANGE, ((0.0, "less"), (0.5, "0"), (1.0, "more"))))
    if any(step.mask is not None for step in trace):
        entries += [Key("boxes of the mask’s parts", BOX), Key("dark: outside the mask")]
    return entries
