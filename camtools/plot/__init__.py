"""Figures of several explanations: `compare` them side by side, or see what each step of a pipeline did."""

from camtools.plot.comparison import compare
from camtools.plot.steps import plot_trace

__all__ = ["compare", "plot_trace"]
