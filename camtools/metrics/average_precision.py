"""Average precision of ranked detections, and the base of the metrics that are a mean of it over classes."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from camtools.errors import InputError
from camtools.metrics.arguments import class_labels, numbers, ranked_scores
from camtools.metrics.base import ListMetric, percent

Interpolation = Literal["area", "11-point"]


class RankedCurve(NamedTuple):
    """Precision and recall of one class over its ranked detections, each (N,) float64, highest score first.

    Attributes:
        precision: Share of true positives among this detection and those ranked above, in [0, 1].
        recall: Share of the objects that they hit, in [0, 1].
        scores: The detections' scores.
    """

    precision: Tensor
    recall: Tensor
    scores: Tensor


def average_precision(
    scores: Tensor,
    correct: Tensor,
    positives: int | Tensor,
    interpolation: Interpolation = "area",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the average precision of one class's detections, as the VOC devkits define it.

    Precision at a recall is the largest precision at that recall or above. "area" is the area under this curve (VOC
    2010 and later), "11-point" its mean at the recalls 0, 0.1 ... 1 (VOC 2007), compared without rounding.

    Args:
        scores: (N,) any real dtype. Of equal scores the earlier comes first.
        correct: (N,) bool, whether a detection is a true positive; those to be ignored must have been left out.
        positives: How many objects there are to find, or (R,) of them, one for each set of weights; at 0 there is no
            average precision, and the result is NaN.
        interpolation: "area" or "11-point".
        weights: How often each detection counts, (R, N) whole numbers; None for each once.

    Returns:
        () float64 per cent; (R,) with weights.

    Raises:
        InputError: `interpolation` is unknown, or something is of another shape or type.
    """
    check_interpolation(interpolation, "average_precision")
    scores = numbers("scores", scores)
    scores = ranked_scores("scores", scores, scores.numel(), "detections")
    correct, objects = numbers("correct", correct, scores.device), numbers("positives", positives, scores.device)
    if correct.shape != scores.shape or (correct.dtype != torch.bool and len(correct)):
        raise InputError(
            f"correct: expected bool of shape {tuple(scores.shape)}, one per detection, got {tuple(correct.shape)} "
            f"{correct.dtype}."
        )
    if objects.dim() > 1 or not bool(((objects >= 0) & (objects == objects.floor())).all()):
        raise InputError(f"positives: expected a whole number of at least 0, got {positives!r}.")
    order = scores.argsort(descending=True, stable=True)
    counts = torch.ones_like(order)[None] if weights is None else weights[:, order]
    gained = counts * correct[order]
    hits, seen = gained.cumsum(-1), counts.cumsum(-1)
    precision = torch.where(seen > 0, hits.double() / seen, 0.0)
    envelope = precision.flip(-1).cummax(-1).values.flip(-1) if len(scores) else precision
    objects = objects.expand(len(counts))
    if interpolation == "area":
        value = percent((envelope * gained).sum(-1), objects)
    else:
        wanted = torch.arange(11, device=scores.device) * objects[:, None]  # ten times the objects to be found
        reached = torch.searchsorted((10 * hits).contiguous(), wanted)
        at = torch.cat([envelope, envelope.new_zeros(len(envelope), 1)], -1).gather(-1, reached)
        value = torch.where(objects > 0, 100 * at.mean(-1), math.nan)
    return value[0] if weights is None else value


def class_precisions(
    scores: Tensor,
    labels: Tensor,
    correct: Tensor,
    true_labels: Tensor,
    interpolation: Interpolation = "area",
    weights: tuple[Tensor, Tensor] | None = None,
) -> dict[int, Tensor]:
    """Return the average precision of every class with an object to find.

    Args:
        scores: (N,), of the detections of all classes.
        labels: (N,) int64, their classes.
        correct: (N,) bool.
        true_labels: (M,) int64, the class of every object to find.
        interpolation: "area" or "11-point".
        weights: How often each detection counts, (R, N), and each object, (R, M); None for each once.

    Returns:
        By class, () or with weights (R,) float64 per cent; NaN where none of its objects counts. The mean average
        precision is the mean over those that are not NaN.
    """
    values = {}
    for label in true_labels.unique().tolist():
        own, objects = (labels == label).nonzero()[:, 0], true_labels == label
        counts = None if weights is None else weights[0][:, own]
        positives = objects.sum() if weights is None else weights[1][:, objects].sum(1)
        values[label] = average_precision(scores[own], correct[own], positives, interpolation, counts)
    return values


def check_interpolation(value: object, owner: str) -> None:
    """Check an interpolation.

    Raises:
        InputError: `value` is neither "area" nor "11-point".
    """
    if not isinstance(value, str) or value not in get_args(Interpolation):
        raise InputError(
            f"{owner}(interpolation={value!r}): expected 'area' (VOC 2010 and later) or '11-point' (VOC 2007)."
        )


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
        states = {"scores": torch.float64, "labels": torch.int64, "correct": torch.uint8, "positives": torch.int64}
        super().__init__(states, **kwargs)
        self.interpolation: Interpolation = interpolation

    def compute(self) -> Tensor:
        """Return the mean average precision in per cent, () float64; NaN before any object was seen."""
        values = list(self._per_class().values())
        return torch.tensor(values, dtype=torch.float64, device=self.device).mean()

    def per_class(self) -> dict[int, float]:
        """Return every class's average precision in per cent, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._per_class()

    def curve(self, label: int) -> RankedCurve:
        """Return one class's precision and recall, over all processes (call it in all of them).

        Raises:
            InputError: `label` is no class, or no object of it was seen.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            label = int(class_labels("label", [label], 1, "curve"))
            positives = int((self.joined("positives") == label).sum())
            if positives == 0:
                occurring = self.joined("positives").unique().tolist()
                raise InputError(f"curve(label={label!r}): no such object was seen; the classes seen are {occurring}.")
            own = self.joined("labels") == label
            scores, order = self.joined("scores")[own].sort(descending=True, stable=True)  # as in average_precision
            hits = self.joined("correct")[own][order].double().cumsum(0)
            rank = torch.arange(1, len(order) + 1, dtype=torch.float64, device=scores.device)
            return RankedCurve(hits / rank, hits / positives, scores)

    def _per_class(self) -> dict[int, float]:
        ranked = self.joined("scores"), self.joined("labels"), self.joined("correct").bool()
        precisions = class_precisions(*ranked, self.joined("positives"), self.interpolation)
        return {label: value.item() for label, value in precisions.items()}
