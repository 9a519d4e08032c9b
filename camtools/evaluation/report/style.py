"""How curve figures look: colours, lines, letters and axes, none of it left to matplotlib's settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties

from camtools.evaluation.report.lines import Panel
from camtools.lettering import BOLD, FONT

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
