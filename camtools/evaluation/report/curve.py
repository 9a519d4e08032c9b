"""`plot_curve`: a metric against the threshold, one line per pipeline, its best point marked."""

from __future__ import annotations

from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from camtools.drawing.text import font, wrapped
from camtools.errors import InputError
from camtools.evaluation.report.lines import Line, counted, panels
from camtools.evaluation.results import EvaluationResult

DPI = 150
WIDTH = 7.2  # inches
INK, FAINT = "#222222", "#6e6e6e"
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers tell apart, without the yellow that is too pale on white."""
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)), (0, (9, 2.5)))
_MARKERS = "osD^vPXh"
_LOOKS = [(COLOURS[k % 7], _DASHES[k % 5], _MARKERS[k % 8]) for k in range(280)]  # only the 281st repeats the first

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # names may have $ and _
    "figure.dpi": DPI,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "axes.prop_cycle": cycler(color=[c for c, _, _ in _LOOKS])
    + cycler(linestyle=[d for _, d, _ in _LOOKS])
    + cycler(marker=[m for _, _, m in _LOOKS]),
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.7,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.9,
    "legend.columnspacing": 1.6,
}
"""Of figures; over matplotlib's defaults, `matplotlib.style.context(("default", STYLE))`."""

_XLABELS = {"PxAP": "recall: share of the objects’ pixels that are kept (%)"}
_YLABELS = {
    "MaxBoxAcc": "localised with IoU ≥ 0.5 (%)",
    "MaxBoxAccV2": "localised (%)",
    "PxAP": "precision (%)",
    "PeakIoU": "mean IoU of the masks (%)",
}


def plot_curve(result: EvaluationResult, metric: str = "MaxBoxAcc", *, title: str | None = None) -> Image.Image:
    """Draw how a metric depends on the threshold.

    Every line's maximum has a marker, and the threshold chosen on other data, where there is one, a hollow one. The
    values stand in the legend below; the highest also at its marker.

    Args:
        result: Of an evaluation.
        metric: "MaxBoxAcc" or "PeakIoU"; "MaxBoxAccV2", which has a panel for each of its three IoU and one for their
            mean; or "PxAP", precision against recall.
        title: Above the figure; defaults to the metric.

    Returns:
        RGB image, 1,080 pixels wide. `curve_figure` has the same for PDF or SVG.

    Raises:
        InputError: The metric has no curve, or the data has no truth for it.
    """
    canvas = FigureCanvasAgg(curve_figure(result, metric, title=title))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def curve_figure(result: EvaluationResult, metric: str = "MaxBoxAcc", *, title: str | None = None) -> Figure:
    """Return the figure of `plot_curve` as matplotlib's, for `savefig("curve.pdf")`.

    It belongs to no window and to no pyplot; fonts and colours do not depend on matplotlib's settings.
    """
    if title is not None and not isinstance(title, str):
        raise InputError(f"title={title!r}: expected a text, or None for the metric's name")
    shown = panels(result, metric)
    across = 1 if len(shown) == 1 else 2
    lines = [line for panel in shown.values() for line in panel]
    entries, columns = _entries(result, metric, lines)
    rows = -(-len(entries) // columns)  # of the legend
    below = sum(1 + max(words.count("\n") for words in entries[row::rows]) for row in range(rows))  # its lines
    with style.context(("default", STYLE)):
        figure = Figure(figsize=(WIDTH, (4.7 if across == 1 else 6.2) + 0.19 * below))
        grid = figure.subplots(len(shown) // across, across, sharex=True, sharey=True, squeeze=False)
        for ax, (heading, panel) in zip(grid.flat, shown.items(), strict=True):
            _draw(ax, panel)
            ax.set_title(heading)
        high = max(float(line.y.max()) for line in lines)
        above = 1.05 if metric == "PxAP" else 1.18  # room for the value at the highest mark
        grid[0, 0].set(xlim=(0, 100 if metric == "PxAP" else 1), ylim=(0, max(above * high, 5)))  # all panels'
        grid[0, 0].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        handles = grid[0, 0].get_legend_handles_labels()[0]
        if len(entries) > len(handles):
            for face in (FAINT, "white"):
                handles.append(Line2D([], [], color=FAINT, linestyle="none", marker="o", markerfacecolor=face))
        options: dict[str, Any] = {"title_fontproperties": {"weight": "bold"}, "alignment": "left"}
        if across > 1:
            options["title"] = f"{metric}, the mean of the three maxima:"
        figure.legend(handles, entries, loc="outside lower left", ncols=columns, **options)
        for ax in grid[-1]:
            ax.set_xlabel(_XLABELS.get(metric, "threshold, as a fraction of the map’s maximum"))
        for ax in grid[:, 0]:
            ax.set_ylabel(_YLABELS[metric])
        grid[0, -1].set_title(counted(result, metric), loc="right", color=FAINT, fontsize=9, fontweight="normal")
        words = wrapped(metric if title is None else title, font(12 * DPI / 72, True), 0.94 * WIDTH * DPI, 2)
        figure.suptitle("\n".join(words), x=0.02, horizontalalignment="left")
        figure.draw_without_rendering()  # ticks come into being when they are drawn, and here have the style
    return figure


def _entries(result: EvaluationResult, metric: str, lines: list[Line]) -> tuple[list[str], int]:
    """Return what the legend says, and in how many columns it has room."""
    face, room = font(9 * DPI / 72), (WIDTH - 0.8) * DPI
    entries = []
    for line in lines[: len(result.pipelines)]:
        tail = f"  {line.label}"
        if metric == "MaxBoxAccV2":
            value = result.metrics.get(line.name, {}).get(metric)
            tail = "" if value is None else f"  {value.value:.1f}"
            if value is not None and value.calibrated is not None:
                tail += f", calibrated {value.calibrated:.1f}"
        # the name is cut to two lines, its value never
        entries.append("\n".join(wrapped(line.name, face, room - face.getlength(tail), 2)) + tail)
    if any(line.calibrated is not None for line in lines):
        entries += ["best for this data", "at the threshold chosen on the calibration data"]
    widest = max(face.getlength(words) for entry in entries for words in entry.splitlines())
    return entries, max(1, min(4, len(entries), int(WIDTH * DPI // (widest + 6 * face.size))))


def _draw(ax: Axes, lines: list[Line]) -> None:
    """Draw a panel's lines and marks; the value stands at the highest, where no line can be in its way."""
    for line in lines:
        marked: dict[str, Any] = (
            {"marker": ""} if line.best is None else {"markevery": [], "markeredgecolor": "white"}
        )  # in the legend
        (drawn,) = ax.plot(line.x, line.y, label=line.name, clip_on=False, **marked)
        look: dict[str, Any] = {"color": drawn.get_color(), "marker": drawn.get_marker(), "linestyle": "none"}
        if line.calibrated is not None:
            at = line.x[line.calibrated], line.y[line.calibrated]
            ax.plot(*at, label="_calibrated", zorder=4, clip_on=False, markerfacecolor="white", **look)
        if line.best is not None:
            at = line.x[line.best], line.y[line.best]
            ax.plot(*at, label="_best", zorder=5, clip_on=False, markeredgecolor="white", **look)
    highest = max(lines, key=lambda line: float(line.y.max()))
    if highest.best is not None:
        x, y = highest.x[highest.best], highest.y[highest.best]
        side = "left" if x < 0.2 else "right" if x > 0.8 else "center"
        ax.annotate(f"{y:.1f} at {x:.3f}", (x, y), (0, 6), textcoords="offset points", ha=side, fontsize=8)
