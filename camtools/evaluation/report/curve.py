"""`plot_curve`: a metric against the threshold, one line a pipeline, its best point marked."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from camtools.errors import InputError
from camtools.evaluation.report.keys import draw_legend, has_calibrated
from camtools.evaluation.report.lines import Panel, counted, panels
from camtools.evaluation.report.placement import leader, place, traced
from camtools.evaluation.report.style import DPI, FAINT, INK, dark, dot, letters, look, style_axes
from camtools.evaluation.results import EvaluationResult
from camtools.lettering import font, wrapped

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
        title: Above the figure; the metric and the number of pictures by default.

    Returns:
        RGB picture, about 1,100 pixels wide. `curve_figure` has the same for PDF or SVG.

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
