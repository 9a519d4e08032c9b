"""What the metrics share: means under weights, the level that is best for a data set, and states of torchmetrics.

A function with `weights` evaluates a metric under R sets of weights at once: how often each image, or row, counts. One
set is one replicate of a bootstrap; without weights everything counts once, and R is 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from camtools.metrics.arguments import map_size


class Estimate(NamedTuple):
    """A metric under R sets of weights.

    Attributes:
        value: Per cent, (R,) float64; NaN where nothing counts.
        levels: The level of each of its parts' thresholds, (R, parts) int64; no columns where it has none.
    """

    value: Tensor
    levels: Tensor


def weighted_sum(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum of rows, each as often as it counts.

    Args:
        values: (N, T) bool or float. Bools are counted in float32, which is exact up to 16 million.
        weights: How often each row counts, (R, N); None for every row once.

    Returns:
        (R, T), int64 of bools without weights, else float.
    """
    if weights is None:
        return values.sum(0, keepdim=True)
    values = values.float() if values.dtype == torch.bool else values
    return weights.to(values.dtype) @ values


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of numbers, (N,) in [0, 1], under each set of weights (R, N): per cent, (R,) float64."""
    total = torch.tensor([len(values)]) if weights is None else weights.sum(1)
    return percent(weighted_sum(values.double()[:, None], weights)[:, 0], total)


def best_level(sums: Tensor, by: Tensor | None, total: Tensor, levels: Tensor | None = None) -> Estimate:
    """Return a mean over images at the level where it is largest, the first of equals.

    Args:
        sums: Sum over the images at each level, (R, parts, T); of several parts each has its own level, and the value
            is the mean over them.
        by: Chooses the levels instead of the sums themselves, (R, parts, T); None for the sums.
        total: How many images each set of weights has, (R,).
        levels: These instead of the best, (parts,) or (R, parts).
    """
    chosen = (sums if by is None else by).argmax(-1) if levels is None else levels.expand(sums.shape[:2])
    value = sums.gather(-1, chosen[..., None])[..., 0].double().mean(-1)
    return Estimate(percent(value, total), chosen)


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """Return per cent of a whole, float64; NaN of nothing."""
    whole = whole.to(part.device)
    return torch.where(whole > 0, 100 * part.double() / whole.clamp(min=1), math.nan)


class ListMetric(Metric):
    """A metric whose states are lists of 1-D tensors, one entry per update, concatenated over processes.

    Lists never are quite empty: a process without data then still sends tensors of the right type to the others.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, states: dict[str, torch.dtype], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._state_dtypes = states
        for name in states:
            self.add_state(name, [], dist_reduce_fx="cat")
        self._fill()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._fill()

    def append(self, **values: Tensor) -> None:
        """Add values to the states of these names."""
        for name, value in values.items():
            getattr(self, name).append(value.detach().to(self.device, self._state_dtypes[name]))

    def joined(self, name: str) -> Tensor:
        """Return a state as one tensor, (N,)."""
        return dim_zero_cat(getattr(self, name))

    def _fill(self) -> None:
        for name, dtype in self._state_dtypes.items():
            setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])


class SumMetric(Metric):
    """A metric whose states are sums over the images, of maps that are compared with the truth at one size.

    Args:
        sums: The states before any image.
        size: (height, width) at which maps and truth are compared; None for the maps' own.
        *settings: What else decides what is counted.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: `size` is no size.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, sums: dict[str, Tensor], size: tuple[int, int] | None, *settings: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = map_size(size)
        for name, zeros in sums.items():
            self.add_state(name, zeros, dist_reduce_fx="sum")
        keep_apart(self, *(size or (0, 0)), *settings)

    def add(self, **values: Tensor | int) -> None:
        """Add a batch's sums to the states of these names."""
        for name, value in values.items():
            state = getattr(self, name)
            setattr(self, name, state + torch.as_tensor(value, device=state.device))


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
