"""Reports of an evaluation: tables, curves, contact sheets and a page for the browser, as objects and as files."""

from camtools.evaluation.report.curve import curve_figure, plot_curve
from camtools.evaluation.report.maps import MapOf, explainer_map, model_maps, saved_maps
from camtools.evaluation.report.page import write_page
from camtools.evaluation.report.sheet import change_sheet, contact_sheet
from camtools.evaluation.report.table import markdown, table
from camtools.evaluation.report.write import write_report

__all__ = [
    "MapOf",
    "change_sheet",
    "contact_sheet",
    "curve_figure",
    "explainer_map",
    "markdown",
    "model_maps",
    "plot_curve",
    "saved_maps",
    "table",
    "write_page",
    "write_report",
]
