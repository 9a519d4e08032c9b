"""Results in the formats of annotation tools, trainers and tables; any number of them from one run, streamed."""

from camtools.exports.export import FORMATS, Exports, export
from camtools.exports.item import Expected, ImageExport
from camtools.exports.table import results_frame

__all__ = ["FORMATS", "Expected", "Exports", "ImageExport", "export", "results_frame"]
