"""Average precision of ranked detections, and the base of the metrics that are a mean of it over classes."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from camtools.errors import InputError

Interpolation = Literal["area", "11-point"]


class RankedCurve(NamedTuple):
    """Precision and recall of one class over its ranked detections, each (N,) float64, highest score first.

    Attributes:
        precision: Share of true positives among this detection and those ranked above, in [0, 1].
        recall: Share of the objects found by them, in [0, 1].
        scores: The detections' scores.
    """

    precision: Tensor
    recall: Tensor
    scores: Tensor


def ranked_curve(scores: Tensor, correct: Tensor, positives: int) -> RankedCurve:
    """Return precision and recall over detections ranked by score.

    Args:
        scores: (N,) any real dtype. Of equal scores the earlier comes first, as in the VOC devkit.
        correct: (N,) bool, whether a detection is a true positive.
        positives: How many objects there are to find, > 0.

    Returns:
        The curve on the scores' device.
    """
    order = scores.argsort(descending=True, stable=True)
    found = correct[order].cumsum(0).double()
    rank = torch.arange(1, len(order) + 1, dtype=torch.float64, device=scores.device)
    return RankedCurve(found / rank, found / positives, scores[order].double())


def average_precision(scores: Tensor, correct: Tensor, positives: int, interpolation: Interpolation = "area") -> Tensor:
    """Return the average precision of one class's detections, as the VOC devkits define it.

    Precision at a recall is the largest precision at that recall or above. "area" is the area under this curve (VOC
    2010 and later), "11-point" its mean at the recalls 0, 0.1 ... 1 (VOC 2007), compared without rounding.

    Args:
        scores: (N,) any real dtype. Of equal scores the earlier comes first.
        correct: (N,) bool, whether a detection is a true positive; those to be ignored must have been left out.
        positives: How many objects there are to find; at 0 there is no average precision, and the result is NaN.
        interpolation: "area" or "11-point".

    Returns:
        () float64 per cent.

    Raises:
        InputError: `interpolation` is unknown.
    """
    check_interpolation(interpolation, "average_precision")
    if positives == 0:
        return torch.tensor(math.nan, dtype=torch.float64, device=scores.device)
    precision, recall, _ = ranked_curve(scores, correct, positives)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(precision) else precision
    found = (recall * positives).round().long()
    if interpolation == "area":
        steps = found.diff(prepend=found.new_zeros(1))  # 1 at a true positive
        return 100 * (envelope * steps).sum() / positives
    wanted = torch.arange(11, device=scores.device) * positives  # ten times the objects to be found
    reached = torch.searchsorted(10 * found, wanted)
    return 100 * torch.cat([envelope, envelope.new_zeros(1)])[reached].mean()


def check_interpolation(value: object, owner: str) -> None:
    """Refuse an unknown interpolation.

    Raises:
        InputError: `value` is neither "area" nor "11-point".
    """
    if value not in get_args(Interpolation):
        raise InputError(
            f"{owner}(interpolation={value!r}): expected 'area' (VOC 2010 and later) or '11-point' (VOC 2007)."
        )


class ListMetric(Metric):
    """A metric whose states are lists of 1-D tensors, one entry an update, concatenated over processes.

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


class RankedMetric(ListMetric):
    """Mean over the classes of the average precision of ranked detections.

    A class occurs when there is at least one object of it to find; classes that don't are left out of the mean.

    Args:
        interpolation: "area" (VOC 2010 and later) or "11-point" (VOC 2007).
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: `interpolation` is unknown.
    """

    scores: list[Tensor]
    """(N,) float64, of every detection that counts."""
    labels: list[Tensor]
    """(N,) int64, their classes."""
    correct: list[Tensor]
    """(N,) uint8, 1 for the true positives."""
    positives: list[Tensor]
    """(M,) int64, the class of every object to find."""

    def __init__(self, interpolation: Interpolation = "area", **kwargs: Any) -> None:
        check_interpolation(interpolation, type(self).__name__)
        states = {
            "scores": torch.float64,
            "labels": torch.int64,
            "correct": torch.uint8,
            "positives": torch.int64,
        }
        super().__init__(states, **kwargs)
        self.interpolation: Interpolation = interpolation

    def compute(self) -> Tensor:
        """Return the mean average precision in per cent, () float64; NaN before any object was seen."""
        found = list(self._per_class().values())
        return torch.tensor(found, dtype=torch.float64, device=self.device).mean()

    def per_class(self) -> dict[int, float]:
        """Return every class's average precision in per cent, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._per_class()

    def curve(self, label: int) -> RankedCurve:
        """Return one class's precision and recall, over all processes (call it in all of them).

        Raises:
            InputError: No object of the class was seen.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            positives = int((self.joined("positives") == label).sum())
            if positives == 0:
                occurring = self.joined("positives").unique().tolist()
                raise InputError(f"curve(label={label!r}): no such object was seen; the classes seen are {occurring}.")
            own = self.joined("labels") == label
            return ranked_curve(self.joined("scores")[own], self.joined("correct")[own].bool(), positives)

    def _per_class(self) -> dict[int, float]:
        scores, labels, correct = self.joined("scores"), self.joined("labels"), self.joined("correct").bool()
        classes, counts = self.joined("positives").unique(return_counts=True)
        found = {}
        for label, positives in zip(classes.tolist(), counts.tolist(), strict=True):
            own = labels == label
            found[label] = average_precision(scores[own], correct[own], positives, self.interpolation).item()
        return found


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
