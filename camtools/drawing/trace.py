"""`plot_trace`: what every step of a pipeline made of the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camtools.checks import whole
from camtools.drawing.legend import Bar, Key, draw_box
from camtools.drawing.overlay import BOX, blend
from camtools.drawing.panels import Panel, Text, figure, fit, in_rows, note, outlined, resized, title
from camtools.errors import InputError
from camtools.explanation import Explanation
from camtools.pipeline.trace import TraceStep

SIGNED = "RdBu_r"  # blue against the class, red for it
CHANGE = "PuOr_r"  # purple less, orange more; both pairs are told apart by colour-blind readers
_EDGE = (255, 255, 255)
_SAME = 1e-5  # of the range: what float32 arithmetic may differ by


def plot_trace(
    explanation: Explanation, *, height: int = 140, columns: int | None = None, colormap: str = "inferno"
) -> Image.Image:
    """Draw what `Explanation.plot_trace` documents.

    Args:
        explanation: One with a trace.
        height: Of a thumbnail, pixels.
        columns: Thumbnails in a row; None fits them into about 1,600 pixels.
        colormap: Name of a matplotlib colour map, for normalised maps.

    Returns:
        RGB image.

    Raises:
        InputError: There is no trace, or an argument cannot be used.
    """
    if not explanation.trace:
        raise InputError(
            "this explanation has no trace: the map after every step was not kept. Explain with trace=True: "
            "explain(model, image, trace=True) or Explainer(model, trace=True)"
        )
    whole("height", height, 16)
    image = explanation.image
    image = image.resize(fit(image.width, image.height, height), Image.Resampling.LANCZOS)
    facts = f"{explanation.size[0]} × {explanation.size[1]}\nscore {explanation.score:.1%}"
    panels: list[Panel] = [[title(explanation.name), image, note(facts)]]
    before: TraceStep | None = None
    for step in explanation.trace:
        values = step.map.cpu().numpy()
        shown = _thumbnail(values, step, height, colormap) if step.mask is None else _masked(explanation, step, image)
        panels.append([title(step.step), shown, note(_range(values, step)), *_change(before, step, height)])
        before = step
    size = max(12, round(height / 13))
    return figure(in_rows(panels, columns, size), _legend(explanation.trace, colormap, panels), size, aligned=False)


def _thumbnail(values: NDArray[np.float32], step: TraceStep, height: int, colormap: str) -> Image.Image:
    """Draw a map in colours: diverging about 0 before it is normalised, the given ones after."""
    if step.normalised:
        return _coloured(values, height, colormap)
    most = float(np.abs(values).max()) or 1.0
    return _coloured(0.5 + values / (2 * most), height, SIGNED)


def _coloured(values: NDArray[np.floating[Any]], height: int, colormap: str) -> Image.Image:
    """Draw values in [0, 1]; the cells of a small grid stay visible."""
    rows, columns = values.shape
    size = fit(columns, rows, height)
    scaled = resized(values.astype(np.float32), size, smooth=rows > height / 3 or columns > height / 3).clip(0, 1)
    return blend(Image.new("RGB", size), scaled, 1.0, colormap)


def _masked(explanation: Explanation, step: TraceStep, image: Image.Image) -> Image.Image:
    """Draw mask and boxes over the image: what is left out is pale."""
    assert step.mask is not None
    mask = np.asarray(Image.fromarray(step.mask.cpu().numpy()).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image, dtype=np.float32)
    pale = 0.3 * pixels.mean(2, keepdims=True)
    canvas = Image.fromarray(np.where(mask[..., None], pixels, pale).astype(np.uint8))
    outlined(canvas, mask, _EDGE, 1)
    draw = ImageDraw.Draw(canvas)
    scale = np.array([image.width / explanation.size[1], image.height / explanation.size[0]] * 2)
    for box in explanation.boxes.tolist():
        draw_box(draw, np.rint(box * scale).tolist(), BOX, max(2, round(image.height / 110)))
    return canvas


def _range(values: NDArray[np.float32], step: TraceStep) -> str:
    """Write the size and the range of a map, or what a mask keeps."""
    if step.mask is not None:
        return f"mask keeps {step.mask.float().mean().item():.1%}"
    return f"{values.shape[0]} × {values.shape[1]}\n{_number(values.min())} to {_number(values.max())}"


def _number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits and a true minus sign."""
    return f"{float(value):.{digits}g}".replace("-", "−")


def _change(before: TraceStep | None, after: TraceStep, height: int) -> list[Text | Image.Image]:
    """Say or show how a map differs from the one before."""
    if before is None:
        return [note("the first map", 3, 0.5)]
    if before.map.shape != after.map.shape:
        return [note("the same map on the image’s pixels", 4, 0.5)]
    one, other = before.map.cpu().numpy(), after.map.cpu().numpy()
    if np.array_equal(one, other):
        return [note("map unchanged" if after.mask is not None else "unchanged", 3, 0.5)]
    if not (before.normalised and after.normalised):
        one, other = _normalised(one), _normalised(other)
    difference = other - one
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
