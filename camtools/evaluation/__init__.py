"""Evaluation of maps on data sets with truth: `evaluate`, its result, and thresholds chosen on calibration data."""

from camtools.evaluation.evaluator import evaluate
from camtools.evaluation.results import EvaluationResult, Value
from camtools.evaluation.rows import Ranked, Rows
from camtools.evaluation.statistics import STATISTICS
from camtools.evaluation.thresholds import calibrated
from camtools.evaluation.unlabelled import Calibration, calibrate

METRICS = tuple(STATISTICS)
"""Names of all metrics, in the order in which they are shown."""

__all__ = [
    "METRICS",
    "Calibration",
    "EvaluationResult",
    "Ranked",
    "Rows",
    "Value",
    "calibrate",
    "calibrated",
    "evaluate",
]
