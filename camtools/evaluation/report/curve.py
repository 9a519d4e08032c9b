"""`plot_curve`: a metric against the threshold, one line a pipeline, its best point marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from camtools.drawing.text import BOLD, FONT, font, wrapped
from camtools.errors import InputError
from camtools.evaluation.report.lines import Panel, counted, panels
from camtools.evaluation.results import EvaluationResult, Value

_DIRECT = 4  # lines that are labelled one by one
_SHORT = 18  # characters of a name that can stand at its line
_LEFT, _RIGHT, _BOTTOM = 0.72, 0.18, 0.58  # inches around the axes
_BETWEEN = 0.66  # inches between panels, for tick labels and titles
_SINGLE, _SMALL = (6.3, 3.7), (2.9, 2.15)  # inches, the axes themselves


def plot_curve(result: EvaluationResult, metric: str = "MaxBoxAcc", *, title: str | None = None) -> Image.Image:
    """Draw how a metric depends on the threshold.

    Every line's maximum has a marker, and the threshold chosen on other data, where there is one, a hollow one. Values
    stand at the maxima, or below the figure where there are more than four lines; there the best line is labelled.

    Args:
        result: Of an evaluation.
        metric: "MaxBoxAcc" or "PeakIoU"; "MaxBoxAccV2", which has a panel for each of its three IoU and one for their
            mean; or "PxAP", precision against recall.
        title: Above the figure; the metric and the number of images by default.

    Returns:
        RGB image, about 1,100 pixels wide. `curve_figure` has the same for PDF or SVG.

    Raises:
        InputError: The metric has no curve, or the data has no truth for it.
    """
    figure = curve_figure(result, metric, title=title)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def curve_figure(result: EvaluationResult, metric: str = "MaxBoxAcc", *, title: str | None = None) -> Figure:
    """Return the figure of `plot_curve` as matplotlib's, for `savefig("curve.pdf")`.

    It belongs to no window and to no pyplot; fonts and colours do not depend on matplotlib's settings.
    """
    if title is not None and not isinstance(title, str):
        raise InputError(f"title={title!r}: expected a text, or None for the metric's name")
    shown = panels(result, metric)
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    size = _SINGLE if columns == 1 else _SMALL
    direct = len(result.pipelines) <= _DIRECT
    short = all(len(line.name) <= _SHORT for line in shown[0].lines)
    named = direct and columns == 1 and short and not has_calibrated(shown)
    figure = Figure(
        figsize=(_LEFT + columns * (size[0] + _RIGHT) + (columns - 1) * _LEFT, 1), dpi=DPI, facecolor="white"
    )
    FigureCanvasAgg(figure)
    width = figure.get_figwidth()
    below = 0.0 if named else draw_legend(figure, result, metric, shown)
    step = size[1] + _BETWEEN
    top = 0.72 if shown[0].title else 0.52
    height = top + rows * step - _BETWEEN + _BOTTOM + below
    figure.set_size_inches(width, height)  # the legend, placed from the bottom, keeps its distance to it
    high = _ceiling(shown)
    for k, panel in enumerate(shown):
        row, column = divmod(k, columns)
        left = _LEFT + column * (size[0] + _LEFT + _RIGHT)
        bottom = below + _BOTTOM + (rows - 1 - row) * step
        ax = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
        style_axes(ax, panel, high, first=column == 0, last=row == rows - 1)
        _draw(ax, panel)
        _label(figure, ax, panel, direct=direct, named=named)
    count = counted(result, metric)
    room = width - 0.14 - _RIGHT - 0.3 - font(9 * DPI / 72).getlength(count) / DPI
    words = " ".join(wrapped(metric if title is None else title, font(12 * DPI / 72, True), room * DPI, 1))
    for x, text, side, face in (
        (0.14, words, "left", letters(12, True)),
        (width - _RIGHT, count, "right", letters(9)),
    ):
        figure.text(
            x / width,
            1 - 0.32 / height,
            text,
            ha=side,
            va="baseline",
            fontproperties=face,
            color=INK if side == "left" else FAINT,
            parse_math=False,
        )
    return figure


def _ceiling(shown: tuple[Panel, ...]) -> float:
    """Return where the vertical axes end: above all lines, with some room."""
    most = max(float(line.y.max()) for panel in shown for line in panel.lines)
    return min(max(1.16 * most, 5.0), 106.0)


def _draw(ax: Axes, panel: Panel) -> None:
    """Draw lines, then the marks over all of them."""
    for k, line in enumerate(panel.lines):
        ax.plot(line.x, line.y, label=line.name, zorder=2 + k / 100, solid_capstyle="round", **look(k))
    for k, line in enumerate(panel.lines):
        if line.calibrated is not None:
            ax.plot(
                *line.calibrated, linestyle="none", zorder=4, clip_on=False, label="_calibrated", **dot(k, hollow=True)
            )
        if line.marked:
            ax.plot(*line.at, linestyle="none", zorder=5, clip_on=False, label="_best", **dot(k))


def _label(figure: Figure, ax: Axes, panel: Panel, *, direct: bool, named: bool) -> None:
    """Write at the maxima: all of them, or the highest."""
    numbers = range(len(panel.lines))
    if not direct:
        numbers = range(k := int(np.argmax([line.value for line in panel.lines])), k + 1)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    labels = {k: words for k in numbers if (words := _words(panel, k, named=named))}
    texts = []
    for k, words in labels.items():
        texts.append(
            figure.text(
                0,
                0,
                words,
                color=dark(k),
                va="bottom",
                ha="left",
                linespacing=1.15,
                parse_math=False,
                fontproperties=letters(9 if named else 8),
            )
        )
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    anchors = ax.transData.transform([panel.lines[k].at for k in labels])
    ways = [traced(ax.transData.transform(np.stack([line.x, line.y], axis=1))) for line in panel.lines]
    dots = [point for line in panel.lines for point in (line.at if line.marked else None, line.calibrated) if point]
    if dots:  # marks are wider than lines
        around = np.stack(np.meshgrid(*[np.arange(-7, 8, 2.0)] * 2), axis=-1).reshape(-1, 2)
        ways += [point + around for point in ax.transData.transform(dots)]
    area = ax.get_window_extent(renderer)
    bounds = (area.x0 + 6, area.y0 + 6, area.x1, area.y1)
    for text, anchor, size, corner in zip(
        texts, anchors, sizes, place(anchors, sizes, np.concatenate(ways), bounds), strict=True
    ):
        if corner is None:
            text.remove()
            continue
        inverse = figure.transFigure.inverted()
        x, y = inverse.transform(corner)
        text.set_position((float(x), float(y)))
        line = leader(anchor, corner, size)
        if line is not None:
            figure.add_artist(
                Line2D(*inverse.transform(line).T, color=FAINT, linewidth=0.7, linestyle="solid", zorder=1)
            )


def _words(panel: Panel, number: int, *, named: bool) -> str:
    """Return what is written at a line; nothing at one that lies on an earlier line and says the same."""
    line = panel.lines[number]
    first = next((one for one in panel.lines if one.name == line.same_as), line)
    label = line.label.partition("\n")[0]  # the legend has what is calibrated
    if first is not line:
        return ""
    if not named:
        return label
    twins = [one.name for one in panel.lines if one.same_as == line.name]
    return f"{' = '.join([line.name, *twins])}  {label}"


def has_calibrated(shown: tuple[Panel, ...]) -> bool:
    """Say whether any line has a point at a calibrated threshold."""
    return any(line.calibrated is not None for panel in shown for line in panel.lines)


def draw_legend(figure: Figure, result: EvaluationResult, metric: str, shown: tuple[Panel, ...]) -> float:
    """Draw the legend at the bottom; return its height in inches."""
    width = figure.get_figwidth() - 0.3
    handles, words = [], []
    for k, line in enumerate(shown[0].lines):
        handles.append(Line2D([], [], **look(k), **dot(k)))
        value = result.metrics.get(line.name, {}).get(metric)
        tail = line.label.replace("\n", ", ")
        if len(shown) > 1:
            tail = "" if value is None else _values(value)
        twin = "" if line.same_as is None or len(shown) > 1 else f" (same curve as {line.same_as})"
        words.append(_entry(line.name, f"{'  ' if tail else ''}{tail}{twin}", width - 0.7))
    if has_calibrated(shown):
        grey: dict[str, Any] = {"linestyle": "none", "markersize": 6.5, "marker": "o", "markeredgecolor": FAINT}
        handles.append(Line2D([], [], markerfacecolor=FAINT, color=FAINT, **grey))
        words.append("best for this data")
        handles.append(Line2D([], [], markerfacecolor="white", color=FAINT, markeredgewidth=1.4, **grey))
        words.append("at the threshold chosen on the calibration data")
    heading = f"{metric}, the mean of the three maxima:" if len(shown) > 1 else None
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(
            handles,
            words,
            loc="lower left",
            bbox_to_anchor=(0.02, 0.0),
            ncols=columns,
            frameon=False,
            prop=letters(9),
            labelcolor=INK,
            handlelength=2.9,
            columnspacing=1.6,
            borderaxespad=0.3,
            title=heading,
            title_fontproperties=letters(9, bold=True),
            alignment="left",
            labelspacing=0.45,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        extent = legend.get_window_extent(canvas.get_renderer())
        if extent.width <= width * DPI or columns == 1:
            return float(extent.height / DPI) + 0.12
        legend.remove()
    return 0.0


def _values(value: Value) -> str:
    return f"{value.value:.1f}" + ("" if value.calibrated is None else f", calibrated {value.calibrated:.1f}")


def _entry(name: str, tail: str, width: float) -> str:
    """Write a name, cut to two lines, and its value, which is never cut."""
    face = font(9 * DPI / 72)
    return "\n".join(wrapped(name, face, width * DPI - face.getlength(tail), 2)) + tail


DPI = 150
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers tell apart, without the yellow that is too pale on white."""
STYLES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)), (0, (9, 2.5)))
MARKERS = "osD^vPXh"
INK, FAINT, GRID = "#222222", "#6e6e6e", "#e4e4e4"


def letters(points: float, bold: bool = False) -> FontProperties:
    """Return DejaVu Sans in a size."""
    return FontProperties(fname=str(BOLD if bold else FONT), size=points)


def look(index: int) -> dict[str, Any]:
    """Return how the line of a pipeline looks; colours and styles together repeat with the 36th."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)], "linewidth": 1.7}


def dot(index: int, *, hollow: bool = False) -> dict[str, Any]:
    """Return how its marked points look."""
    colour = COLOURS[index % len(COLOURS)]
    face = "white" if hollow else colour
    return {
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 6.5,
        "markerfacecolor": face,
        "markeredgecolor": colour if hollow else "white",
        "markeredgewidth": 1.4 if hollow else 0.8,
    }


def dark(index: int) -> tuple[float, float, float]:
    """Return a line's colour dark enough for small letters."""
    red, green, blue = to_rgb(COLOURS[index % len(COLOURS)])
    return 0.72 * red, 0.72 * green, 0.72 * blue


def style_axes(ax: Axes, panel: Panel, high: float, *, first: bool, last: bool) -> None:
    """Set axes up; nothing is left to matplotlib's settings."""
    ax.set_facecolor("white")
    ax.set_xlim(0, panel.xmax)
    ax.set_ylim(0, high)
    step = next(step for step in (1, 2, 5, 10, 20) if high / step <= 8)
    ax.set_yticks(np.arange(0, min(high, 100) + 1e-9, step))
    ax.set_xticks(np.linspace(0, panel.xmax, 6))
    ax.grid(visible=True, axis="y", color=GRID, linewidth=0.8, linestyle="solid", alpha=1)
    ax.grid(visible=False, axis="x")
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.8)
    ax.tick_params(
        axis="both",
        which="both",
        direction="out",
        color=FAINT,
        labelcolor=INK,
        length=3,
        width=0.8,
        top=False,
        right=False,
        left=True,
        bottom=True,
    )
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set_fontproperties(letters(9))
    if panel.title:
        ax.set_title(
            panel.title, loc="left", color=INK, fontproperties=letters(9.5, bold=True), pad=5, parse_math=False
        )
    if last:
        ax.set_xlabel(
            panel.xlabel, color=INK, fontproperties=letters(9.5 if panel.title == "" else 8.5), parse_math=False
        )
    if first:
        ax.set_ylabel(panel.ylabel, color=INK, fontproperties=letters(9.5), parse_math=False)


Array = NDArray[np.float64]
Box = tuple[float, float, float, float]

_STEP = 5.0  # pixels between the places that are tried
_CELL = 2.0  # pixels of the grid that says where something is
# What is bad costs as much as so many pixels of distance:
_COVERED = 14.0  # a grid cell of a line under a label
_ALONG = 9.0  # a grid cell of a line under a leader
_CROSSED = 150.0  # a leader crossed by another
_STRUCK = 600.0  # a label crossed by a leader
_SPACE = 4.0  # pixels between a leader and its label
_REACH = 14.0  # pixels around its anchor where a leader may lie on lines


def traced(points: Array, step: float = 1.5) -> Array:
    """Return points along a polyline (n, 2), at most about `step` apart, (m, 2)."""
    if len(points) < 2:
        return points
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.linspace(0, along[-1], max(2, int(along[-1] / step) + 1))
    return np.stack([np.interp(wanted, along, points[:, k]) for k in range(2)], axis=1)


def place(
    anchors: Array, sizes: Array, obstacles: Array, bounds: Box, gap: float = 8.0
) -> list[tuple[float, float] | None]:
    """Find a place for each label.

    One label after the other, from the highest anchor down, goes where it is nearest to its anchor. Covering a line,
    following it with the leader or crossing another leader costs distance; covering a label or an anchor is impossible.

    Args:
        anchors: (n, 2) points that are labelled; y grows upwards.
        sizes: (n, 2) widths and heights of the labels.
        obstacles: (m, 2) points of lines, close together.
        bounds: x0, y0, x1, y1 in which labels stay.
        gap: Free space around labels and anchors.

    Returns:
        The lower left corner of each label; None where there is no room. All in the same unit, pixels.
    """
    ground = _Ground(obstacles, bounds)
    found: list[tuple[float, float] | None] = [None] * len(anchors)
    taken: list[Box] = []
    leaders: list[Array] = []
    for k in sorted(range(len(anchors)), key=lambda k: (-anchors[k][1], anchors[k][0], k)):
        corners = _candidates(bounds, *sizes[k])
        if not len(corners):
            continue
        boxes = np.concatenate([corners, corners + sizes[k]], axis=1)
        ends = np.clip(anchors[k], boxes[:, :2], boxes[:, 2:])  # where the leader meets the label
        distance = np.hypot(*(ends - anchors[k]).T)
        cost = np.abs(distance - 1.5 * gap) + 0.2 * np.hypot(*((boxes[:, :2] + boxes[:, 2:]) / 2 - anchors[k]).T)
        cost += _COVERED * ground.within(boxes, gap / 2) + _ALONG * ground.under(ends, anchors[k])
        for j, anchor in enumerate(anchors):
            cost[((anchor > boxes[:, :2] - gap) & (anchor < boxes[:, 2:] + gap)).all(1)] = np.inf
            if j != k and np.hypot(*(anchor - anchors[k])) > gap:
                cost[_meets(ends, anchors[k], (*(anchor - gap), *(anchor + gap)))] += _CROSSED
        for box in taken:
            cost[_overlap(boxes, box, gap)] = np.inf
            cost[_meets(ends, anchors[k], box)] += _STRUCK
        for other in leaders:
            cost[_cross(ends, anchors[k], other)] += _CROSSED
            points = traced(other)[:, None]
            cost[((points > boxes[:, :2] - 2) & (points < boxes[:, 2:] + 2)).all(-1).any(0)] += _STRUCK
        best = int(np.argmin(cost))
        if np.isinf(cost[best]):
            continue
        found[k] = (float(corners[best, 0]), float(corners[best, 1]))
        x0, y0, x1, y1 = boxes[best].tolist()
        taken.append((x0, y0, x1, y1))
        leaders.append(np.stack([anchors[k], ends[best]]))
    return found


def leader(anchor: Sequence[float], corner: Sequence[float], size: Sequence[float], near: float = 22.0) -> Array | None:
    """Return the line from a label to its anchor, (2, 2); None for a label within `near` pixels, which needs none."""
    low, start = np.asarray(corner, dtype=np.float64), np.asarray(anchor, dtype=np.float64)
    end = np.clip(start, low, low + np.asarray(size))
    long = float(np.hypot(*(end - start)))
    return None if long < near else np.stack([start, end + (start - end) * _SPACE / long])


class _Ground:
    """Where lines are, as a grid of cells."""

    def __init__(self, points: Array, bounds: Box) -> None:
        self.low = np.array(bounds[:2])
        self.shape = np.ceil((np.array(bounds[2:]) - self.low) / _CELL).astype(int) + 1
        self.cells = np.zeros(tuple(self.shape), dtype=bool)
        at = np.floor((points - self.low) / _CELL).astype(int)
        at = at[((at >= 0) & (at < self.shape)).all(1)]
        self.cells[at[:, 0], at[:, 1]] = True
        self.total = np.zeros(tuple(self.shape + 1))
        self.total[1:, 1:] = self.cells.cumsum(0).cumsum(1)

    def within(self, boxes: Array, gap: float) -> Array:
        """Count the cells of lines in each box, (K,)."""
        low = np.clip(np.floor((boxes[:, :2] - gap - self.low) / _CELL).astype(int), 0, self.shape)
        high = np.clip(np.ceil((boxes[:, 2:] + gap - self.low) / _CELL).astype(int), 0, self.shape)
        (x0, y0), (x1, y1) = low.T, high.T
        return self.total[x1, y1] - self.total[x0, y1] - self.total[x1, y0] + self.total[x0, y0]

    def under(self, ends: Array, anchor: Array, samples: int = 60) -> Array:
        """Say how long the segments from ends (K, 2) to an anchor lie on lines, in cells, (K,)."""
        shares = np.linspace(0, 1, samples)[:, None, None]
        points = ends * (1 - shares) + anchor * shares
        at = np.clip(np.floor((points - self.low) / _CELL).astype(int), 0, self.shape - 1)
        away = np.hypot(*np.moveaxis(points - anchor, -1, 0)) > _REACH
        cells = np.hypot(*(ends - anchor).T) / _CELL / samples
        return (self.cells[at[..., 0], at[..., 1]] & away).sum(0) * cells


def _candidates(bounds: Box, width: float, height: float) -> Array:
    x0, y0, x1, y1 = bounds
    x, y = np.arange(x0, x1 - width + 1e-6, _STEP), np.arange(y0, y1 - height + 1e-6, _STEP)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _overlap(boxes: Array, other: Box, gap: float) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = other
    across = (boxes[:, 0] < x1 + gap) & (boxes[:, 2] > x0 - gap)
    return across & (boxes[:, 1] < y1 + gap / 2) & (boxes[:, 3] > y0 - gap / 2)


def _meets(ends: Array, anchor: Array, box: Box) -> NDArray[np.bool_]:
    """Say which of the segments from ends (K, 2) to an anchor pass through a box."""
    shares = np.linspace(0, 1, 41)[:, None, None]
    points = ends * (1 - shares) + anchor * shares
    x0, y0, x1, y1 = box
    within = (points[..., 0] > x0 - 2) & (points[..., 0] < x1 + 2) & (points[..., 1] > y0) & (points[..., 1] < y1)
    return np.asarray(within.any(0))


def _cross(ends: Array, anchor: Array, other: Array) -> NDArray[np.bool_]:
    """Say which of the segments from ends (K, 2) to an anchor cross another segment (2, 2)."""

    def side(a: Array, b: Array, c: Array) -> Array:
        first, second = b - a, c - a
        return np.sign(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])

    one, two = other
    apart = side(ends, anchor, one) * side(ends, anchor, two) < 0
    return apart & (side(one, two, ends) * side(one, two, anchor) < 0)
