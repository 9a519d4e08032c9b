"""The legend of a curve figure: what each line is, and its values where these don't stand at the lines."""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from camtools.evaluation.report.lines import Panel
from camtools.evaluation.report.style import DPI, FAINT, INK, dot, letters, look
from camtools.evaluation.results import EvaluationResult, Value
from camtools.lettering import font, wrapped


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
