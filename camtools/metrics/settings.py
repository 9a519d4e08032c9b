"""Keep metrics of one kind but different settings apart in a `MetricCollection`."""

from __future__ import annotations

import math

import torch
from torchmetrics import Metric


def keep_apart(metric: Metric, *settings: float | None) -> None:
    """Make the settings that decide what a metric counts part of its state.

    `MetricCollection` compares metrics after their first batch, and from then on updates only one of those whose states
    are equal. Two tolerances of which every point of that batch keeps to both would so become one.

    Args:
        metric: Gets the state `settings`, (n,) float64, which never changes.
        *settings: Numbers; None never equals another None.
    """
    values = [math.nan if value is None else float(value) for value in settings]
    metric.add_state("settings", torch.tensor(values, dtype=torch.float64), dist_reduce_fx="max")
