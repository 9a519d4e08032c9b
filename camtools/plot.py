"""Figures of explanations: side by side, with the truth where it is known, and step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from camtools.checks import whole
from camtools.drawing.legend import Bar, Key
from camtools.drawing.overlay import BOX, TRUTH
from camtools.drawing.panels import Panel, Text, figure, fit, in_rows, note, stacked, thumbnail, title
from camtools.errors import InputError
from camtools.explanation import Explanation

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

    Under each panel are class (unless that is its title), score and, where the truth is given, the IoU (intersection
    over union) of the explanation's `box` with the true box that it fits best. One legend explains the whole figure.
    Panels keep their images' proportions.

    Args:
        explanations: A list, of one image or several; or a list of lists, one per image, each a row of the figure.
        titles: One for each explanation of a list, or each column of a grid. By default the explanations' pipelines,
            and layers where these differ; the classes of a row that differs in nothing else.
        truth: True boxes, (N, 4) xyxy in the original image's pixels, half-open; NaN rows are left out. One tensor
            for all, or a list of one (or None) for each explanation of a list, or each row of a grid.
        truth_masks: True pixels, (H, W) bool, in the same way; their outline is drawn.
        image: Whether each row begins with the plain image, with the truth if there is any.
        columns: Panels per row, for a list; as many as fit in about 1,600 pixels by default.
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
    true = _for_each(truth, rows, "truth", grid, _boxes)
    masks = _for_each(truth_masks, rows, "truth_masks", grid, _mask)
    if grid and columns is not None:
        raise InputError(f"columns={columns}: a list of lists has its own rows. Leave it out, or pass a flat list")
    headings = _titles(rows, titles, grid)
    size = max(11, round(height / 18))
    panels: list[list[Panel]] = [[] for _ in rows]
    for i, row in enumerate(rows):
        if image:
            if len({exp.size for exp in row}) > 1:
                raise InputError("image=True: expected explanations of one image in a row. Pass a list per image")
            plain = _draw(row[0], true[i][0], masks[i][0], height)
            name = Path(row[0].source).name if row[0].source else ""
            heading = title("image") if i == 0 and any(map(any, headings)) else None
            panels[i].append([heading, stacked([plain, note(name, 3)], size)])
        for exp, words, true_boxes, mask in zip(row, headings[i], true[i], masks[i], strict=True):
            look = {"boxes": exp.choose(boxes).tolist(), "alpha": alpha, "colormap": colormap}
            drawn = _draw(exp, true_boxes, mask, height, map=exp.map.cpu().numpy(), **look)
            captions = [Text(said, 3) for said in (exp.name, _result(exp, true_boxes)) if said != words]
            panels[i].append([title(words) if words else None, stacked([drawn, *captions], size)])
    entries: list[Bar | Key] = [Bar("class map, normalised", colormap)]
    if boxes != "none":
        entries.append(Key("predicted box" if boxes == "largest" else "predicted boxes", BOX))
    if any(len(known) for row in true for known in row if known is not None):
        entries.append(Key("true box", TRUTH, dashed=True))
    if any(known is not None for row in masks for known in row):
        entries.append(Key("true outline", TRUTH))
    return figure(panels if grid else in_rows(panels[0], columns, size), entries, size, aligned=grid)


def plot_trace(
    explanation: Explanation, *, height: int = 140, columns: int | None = None, colormap: str = "inferno"
) -> Image.Image:
    """Draw the map after every step: what `Explanation.plot_trace` documents."""
    return explanation.plot_trace(height=height, columns=columns, colormap=colormap)


def _draw(
    exp: Explanation, true: Tensor | None, mask: NDArray[np.bool_] | None, height: int, **options: Any
) -> Image.Image:
    """Draw one panel's image, with the truth and what `thumbnail` takes."""
    if mask is not None and mask.shape != exp.size:
        raise InputError(f"truth_masks: expected (H, W) = {exp.size}, the image's size, not {mask.shape}")
    known = [] if true is None else true.tolist()
    size = fit(exp.size[1], exp.size[0], height)
    return thumbnail(exp.image, size, truth=known, mask=mask, line=max(2, round(height / 110)), **options)


def _result(exp: Explanation, true: Tensor | None) -> str:
    """Say how likely the class is, and how well the box fits."""
    score = f"score {exp.score:.1%}"
    if true is None or not len(true):
        return score if exp.box is not None else f"{score}, no box"
    return f"{score}, IoU {best_iou(exp.box, true):.2f}" if exp.box is not None else f"{score}, no box: IoU 0"


def best_iou(box: Tensor, true: Tensor) -> float:
    """Return the intersection over union of a box (4,) with whichever of the true boxes (N, 4) it fits best."""
    return float(box_iou(box[None].double(), true.double()).max())


def _rows(explanations: Any) -> tuple[list[list[Explanation]], bool]:
    """Return the rows, and whether a list of lists was given."""
    listed: list[Any] = list(explanations) if isinstance(explanations, Iterable) else [explanations]
    grid = bool(listed) and all(isinstance(row, (list, tuple)) for row in listed)
    rows = [list(row) for row in listed] if grid else [listed]
    wrong = [item for row in rows for item in row if not isinstance(item, Explanation)]
    if wrong or not all(rows) or isinstance(explanations, Explanation):
        got = f"{wrong[0]!r}" if wrong else "a single Explanation" if all(rows) else "an empty list"
        raise InputError(f"compare got {got}: expected a list of Explanations, or a list of such lists, one per row")
    return rows, grid


def _for_each(
    value: Any, rows: list[list[Explanation]], name: str, grid: bool, read: Callable[[Any, str], Any]
) -> list[list[Any]]:
    """Return the truth of each explanation in each row, from one for all, a list's or a grid's."""
    count, what = (len(rows), "row") if grid else (len(rows[0]), "explanation")
    if value is None or isinstance(value, (Tensor, np.ndarray)):
        value = [value] * count
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} is {type(value).__name__}: expected one tensor, or a list with one per {what}")
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} items for {count} {what}s: expected one tensor, or one per {what}")
    known = [None if item is None else read(item, name) for item in value]
    return [[item] * len(row) for item, row in zip(known, rows, strict=True)] if grid else [known]


def _boxes(value: Any, name: str) -> Tensor:
    """Read true boxes; rows of NaN (objects without a box) are left out."""
    boxes = _tensor(value, name).double()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{name}: boxes have shape {tuple(boxes.shape)}: expected (N, 4), x0, y0, x1, y1")
    return boxes[~boxes.isnan().any(1)]


def _mask(value: Any, name: str) -> NDArray[np.bool_]:
    """Read a true mask."""
    mask = _tensor(value, name)
    if mask.ndim != 2:
        raise InputError(f"{name}: a mask has shape {tuple(mask.shape)}: expected (H, W)")
    return np.asarray(mask.bool().numpy())


def _tensor(value: Any, name: str) -> Tensor:
    """Read numbers."""
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} holds {value!r}: expected tensors or arrays of numbers") from error


def _titles(rows: list[list[Explanation]], titles: Sequence[str] | None, grid: bool) -> list[list[str]]:
    """Return each panel's title; in a grid they stand over the first row only, where the others have the same."""
    if titles is not None:
        widest = max(map(len, rows))
        if isinstance(titles, str) or len(titles) != widest:
            what = "column" if grid else "explanation"
            raise InputError(f"titles={titles!r}: expected {widest}, one per {what}")
        own = [[str(title) for title in titles[: len(row)]] for row in rows]
    else:
        several = len({exp.layer for row in rows for exp in row}) > 1
        own = [[f"{exp.pipeline} at {exp.layer}" if several else exp.pipeline for exp in row] for row in rows]
        names = [[exp.name for exp in row] for row in rows]
        own = [
            classes if len(set(said)) == 1 < len(set(classes)) else said
            for said, classes in zip(own, names, strict=True)
        ]
    same = all(row == own[0][: len(row)] for row in own)
    return [row if i == 0 or not same else [""] * len(row) for i, row in enumerate(own)]
