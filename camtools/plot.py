"""`compare`: explanations side by side, with the truth where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camtools.checks import whole
from camtools.drawing.legend import Bar, Colour, Key, draw_box
from camtools.drawing.overlay import BOX, blend
from camtools.drawing.panels import Panel, Text, figure, fit, in_rows, note, outlined, resized, stacked, title
from camtools.errors import InputError
from camtools.explanation import Explanation

TRUTH: Colour = (
    70,
    180,
    255,
)  # blue against the prediction's green; boxes are dashed as well, for readers without colours
Boxes = Tensor | NDArray[Any] | None


def compare(
    explanations: Sequence[Explanation] | Sequence[Sequence[Explanation]],
    *,
    titles: Sequence[str] | None = None,
    truth: Boxes | Sequence[Boxes] = None,
    truth_masks: Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any] | None] | None = None,
    image: bool = False,
    columns: int | None = None,
    height: int = 240,
    alpha: float = 0.5,
    colormap: str = "inferno",
    boxes: Literal["largest", "all", "none"] = "largest",
) -> Image.Image:
    """Draw explanations side by side: one image under several pipelines, or a grid of images and pipelines.

    Under each panel are class, score and, where the truth is given, the IoU (intersection over union) of the
    explanation's `box` with the true box that it fits best. One legend explains the whole figure. Panels keep their
    images' proportions.

    Args:
        explanations: A list, of one image or several; or a list of lists, one per image: a row of the figure each.
        titles: One for each explanation of a list, or each column of a grid. By default the explanations' pipelines,
            and layers where these differ.
        truth: True boxes, (N, 4) xyxy in the original image's pixels, half-open; NaN rows are left out. One tensor
            for all, or a list of one (or None) for each explanation of a list, or each row of a grid.
        truth_masks: True pixels, (H, W) bool, in the same way; their outline is drawn.
        image: Whether each row begins with the plain image, with the truth if there is any.
        columns: Panels in a row, for a list; as many as fit in about 1,600 pixels by default.
        height: Of the panels in pixels; strips more than three times as long as they are wide deviate.
        alpha: Weight of the maps' colours, in [0, 1].
        colormap: Name of a matplotlib colour map.
        boxes: Which of the explanations' boxes to draw.

    Returns:
        RGB image.

    Raises:
        InputError: There is nothing to draw, an argument is out of range, or titles or truth do not match.

    Example:
        >>> found = [camtools.explain(model, "bird.jpg", pipeline=name) for name in ("cam", "rcam")]
        >>> camtools.plot.compare(found, truth=torch.tensor([[30, 12, 200, 180]]), image=True).save("bird.png")
    """
    whole("height", height, 16)
    rows, grid = _rows(explanations)
    count = len(rows) if grid else len(rows[0])
    true = _for_each(truth, count, "truth", grid, _boxes)
    masks = _for_each(truth_masks, count, "truth_masks", grid, _mask)
    if grid and columns is not None:
        raise InputError(f"columns={columns}: a list of lists has its own rows. Leave it out, or pass a flat list")
    headings = _titles(rows, titles, grid)
    size = max(11, round(height / 18))
    panels: list[list[Panel]] = []
    for i, row in enumerate(rows):
        made: list[Panel] = []
        if image:
            if len({exp.size for exp in row}) > 1:
                raise InputError("image=True: expected explanations of one image in a row. Pass a list per image")
            first = i if grid else 0
            plain = _draw(row[0], true[first], masks[first], height, 0.0, colormap, "none")
            name = Path(row[0].source).name if row[0].source else ""
            heading = title("image") if i == 0 and headings else None
            made.append([heading, stacked([plain, note(name, 3)], size)])
        for k, exp in enumerate(row):
            own = i if grid else k
            drawn = _draw(exp, true[own], masks[own], height, alpha, colormap, boxes)
            heading = title(headings[i][k]) if headings and headings[i][k] else None
            made.append([heading, stacked([drawn, Text(exp.name, 3), Text(_result(exp, true[own]), 2)], size)])
        panels.append(made)
    lines = panels if grid else in_rows(panels[0], columns, size)
    return figure(lines, _legend(colormap, boxes, true, masks), size, aligned=grid)


def _draw(
    exp: Explanation,
    true: Tensor | None,
    mask: NDArray[np.bool_] | None,
    height: int,
    alpha: float,
    colormap: str,
    boxes: Literal["largest", "all", "none"],
) -> Image.Image:
    """Draw one panel's image at its size in the figure, so that lines are crisp."""
    image = exp.image
    size = fit(image.width, image.height, height)
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2)
    values = resized(exp.map.cpu().numpy(), size).clip(0, 1)
    canvas = blend(image.resize(size, Image.Resampling.LANCZOS), values, alpha, colormap)
    width = max(2, round(height / 110))
    if mask is not None:
        if mask.shape != exp.size:
            raise InputError(f"truth_masks: expected (H, W) = {exp.size}, the image's size, not {mask.shape}")
        small = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        outlined(canvas, np.asarray(small), TRUTH, width)
    draw = ImageDraw.Draw(canvas)
    for box in [] if true is None else true.tolist():
        draw_box(draw, np.rint(box * scale).tolist(), TRUTH, width, dashed=True)
    for box in exp.choose(boxes).tolist():
        draw_box(draw, np.rint(box * scale).tolist(), BOX, width)
    return canvas


def _result(exp: Explanation, true: Tensor | None) -> str:
    """Say how likely the class is, and how well the box fits."""
    score = f"score {exp.score:.1%}"
    if true is None or not len(true):
        return score if exp.box is not None else f"{score}, no box"
    return f"{score}, IoU {best_iou(exp.box, true):.2f}" if exp.box is not None else f"{score}, no box: IoU 0"


def best_iou(box: Tensor, true: Tensor) -> float:
    """Return the intersection over union of a box (4,) with whichever of the true boxes (N, 4) it fits best."""
    one, other = box.double(), true.double()
    sides = (torch.minimum(one[2:], other[:, 2:]) - torch.maximum(one[:2], other[:, :2])).clamp(min=0)
    common = sides.prod(1)
    union = (one[2:] - one[:2]).prod() + (other[:, 2:] - other[:, :2]).prod(1) - common
    return float((common / union).max())


def _rows(explanations: Any) -> tuple[list[list[Explanation]], bool]:
    """Return the rows, and whether a list of lists was given."""
    listed: list[Any] = list(explanations) if isinstance(explanations, Iterable) else [explanations]
    grid = bool(listed) and all(isinstance(row, (list, tuple)) for row in listed)
    rows = [list(row) for row in listed] if grid else [listed]
    wrong = [one for row in rows for one in row if not isinstance(one, Explanation)]
    if wrong or not all(rows) or isinstance(explanations, Explanation):
        got = f"{wrong[0]!r}" if wrong else "a single Explanation" if all(rows) else "an empty list"
        raise InputError(f"compare got {got}: expected a list of Explanations, or a list of such lists, a row each")
    return rows, grid


def _for_each(value: Any, count: int, name: str, grid: bool, read: Callable[[Any, str], Any]) -> list[Any]:
    """Return the truth of each explanation of a list, or each row of a grid."""
    if value is None or isinstance(value, (Tensor, np.ndarray)):
        return [read(value, name)] * count
    what = "row" if grid else "explanation"
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} is {type(value).__name__}: expected one tensor, or a list with one per {what}")
    listed = list(value)
    if len(listed) != count:
        raise InputError(f"{name} has {len(listed)} items for {count} {what}s: expected one tensor, or one per {what}")
    return [read(one, name) for one in listed]


def _boxes(value: Any, name: str) -> Tensor | None:
    """Read true boxes; rows of NaN (objects without a box) are left out."""
    if value is None:
        return None
    found = _tensor(value, name).double()
    if found.ndim != 2 or found.shape[1] != 4:
        raise InputError(f"{name}: boxes have shape {tuple(found.shape)}: expected (N, 4), x0, y0, x1, y1")
    return found[~found.isnan().any(1)]


def _mask(value: Any, name: str) -> NDArray[np.bool_] | None:
    """Read a true mask."""
    if value is None:
        return None
    found = _tensor(value, name)
    if found.ndim != 2:
        raise InputError(f"{name}: a mask has shape {tuple(found.shape)}: expected (H, W)")
    return np.asarray(found.bool().numpy())


def _tensor(value: Any, name: str) -> Tensor:
    """Read numbers."""
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} holds {value!r}: expected tensors or arrays of numbers") from error


def _titles(rows: list[list[Explanation]], titles: Sequence[str] | None, grid: bool) -> list[list[str]] | None:
    """Return the title of each panel; in a grid they stand over the first row only, where the others have the same."""
    widest = max(map(len, rows))
    if titles is not None:
        if isinstance(titles, str) or len(titles) != widest:
            what = "column" if grid else "explanation"
            raise InputError(f"titles={titles!r}: expected {widest}, one per {what}")
        return [[str(title) if i == 0 else "" for title in titles] for i in range(len(rows))]
    several = len({exp.layer for row in rows for exp in row}) > 1
    own = [[f"{exp.pipeline} at {exp.layer}" if several else exp.pipeline for exp in row] for row in rows]
    same = all(row == own[0][: len(row)] for row in own)
    found = [row if i == 0 or not same else [""] * len(row) for i, row in enumerate(own)]
    return found if any(map(any, found)) else None


def _legend(colormap: str, boxes: str, true: list[Any], masks: list[Any]) -> list[Bar | Key]:
    """Explain what the figure has."""
    entries: list[Bar | Key] = [Bar("class map, normalised", colormap)]
    if boxes != "none":
        entries.append(Key("predicted box" if boxes == "largest" else "predicted boxes", BOX))
    if any(one is not None and len(one) for one in true):
        entries.append(Key("true box", TRUTH, dashed=True))
    if any(one is not None for one in masks):
        entries.append(Key("true outline", TRUTH))
    return entries
