"""Pointing: does a map's maximum lie on an object of its class? Accuracy, and the mean average precision of Oquab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.errors import InputError
from camtools.metrics.average_precision import Interpolation, ListMetric, RankedMetric
from camtools.metrics.points import (
    TOLERANCE,
    Arrays,
    Labels,
    Sizes,
    check_tolerance,
    class_labels,
    padded_boxes,
    peak_points,
    point_hits,
)
from camtools.metrics.settings import keep_apart

Average = Literal["pairs", "classes"]


class PointingGame(ListMetric):
    """Pointing accuracy: how often the maximum of a class's map lies in a box of that class, per cent.

    Every map is of one class that is in its picture. It is resized to the picture, and its maximum is a hit inside any
    box of the class, enlarged by `tolerance` pixels on all sides. Pairs of picture and class of which all boxes are
    difficult, or which have none, are left out; difficult boxes beside others count as boxes.

    Source: Oquab et al., CVPR 2015 (18 pixels). Zhang et al., IJCV 2018 (the pointing game) accept less than 15 pixels
    in a straight line instead, so that the corners of the enlarged boxes are round, and report the mean over the
    classes. With `tolerance=0` the maximum must be inside.

    Args:
        tolerance: Pixels of the original picture, >= 0.
        average: What `compute` returns: "pairs", the mean over all pairs, or "classes", the mean over the classes.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    hits: list[Tensor]
    """(N,) uint8, 1 for a hit; one entry a pair that counts."""
    labels: list[Tensor]
    """(N,) int64, the pairs' classes; -1 where none was given."""

    def __init__(self, tolerance: float = TOLERANCE, average: Average = "pairs", **kwargs: Any) -> None:
        check_tolerance(tolerance, "PointingGame")
        if average not in get_args(Average):
            raise InputError(f"PointingGame(average={average!r}): expected 'pairs' or 'classes'.")
        super().__init__({"hits": torch.uint8, "labels": torch.int64}, **kwargs)
        self.tolerance = tolerance
        keep_apart(self, tolerance)
        self.average: Average = average

    def update(
        self,
        maps: Tensor,
        boxes: Arrays,
        sizes: Sizes,
        labels: Labels | None = None,
        difficult: Arrays | None = None,
    ) -> None:
        """Add a batch of pairs of picture and class.

        Args:
            maps: (B, H, W) real, the map of each pair's class, at any resolution; it covers the whole picture.
            boxes: B tensors (N, 4), x0 y0 x1 y1 in pixels of the picture, half-open: the boxes of the pair's class.
                Rows of NaN are objects without a box.
            sizes: B pairs (width, height) of the pictures.
            labels: (B,) integers >= 0, the pairs' classes; only a mean over classes needs them.
            difficult: B tensors (N,) bool, which of the boxes are difficult; None for none.

        Raises:
            InputError: Something is of another shape or type, or not there for every map; or labels are missing that
                the mean over classes needs.
        """
        if labels is None and self.average == "classes":
            raise InputError("labels=None: PointingGame(average='classes') needs the class of every map; give labels.")
        points = peak_points(maps, sizes)
        truth, placed, _ = padded_boxes(boxes, difficult, points)
        classes = class_labels(labels, points)
        self.append(hits=point_hits(points, truth, self.tolerance)[placed], labels=classes[placed])

    def compute(self) -> Tensor:
        """Return the accuracy in per cent, () float64; NaN before any pair that counts was seen."""
        if self.average == "pairs":
            return 100 * self.joined("hits").double().mean()
        return torch.tensor(list(self._per_class().values()), dtype=torch.float64, device=self.device).mean()

    def per_class(self) -> dict[int, float]:
        """Return every class's accuracy in per cent, over all processes (call it in all of them).

        Raises:
            InputError: Maps were added without labels.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._per_class()

    def _per_class(self) -> dict[int, float]:
        labels, hits = self.joined("labels"), self.joined("hits").double()
        if (labels < 0).any():
            raise InputError("per_class(): some maps were added without their class; give labels at every update.")
        return {label: 100 * hits[labels == label].mean().item() for label in labels.unique().tolist()}


class PointingMAP(RankedMetric):
    """Pointing mAP: the mean over classes of the average precision of classifying and pointing at once, per cent.

    Every pair of picture and class is one detection, its score the classifier's, its place the maximum of the class's
    map. It is a true positive if it points at a box of the class (see `PointingGame`), else a false positive: also
    where the class is not in the picture. There is one object to find a picture and class. Therefore all classes of all
    pictures have to be given, absent ones with no boxes; the map of an absent class does not matter. Pairs whose boxes
    are all difficult, or all without a place, are left out.

    Source: Oquab et al., CVPR 2015, the location prediction metric. It does not say how the curve is summarised; here
    as for detections, see `average_precision`.

    Args:
        tolerance: Pixels of the original picture, >= 0.
        interpolation: "area" (VOC 2010 and later) or "11-point" (VOC 2007).
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    def __init__(self, tolerance: float = TOLERANCE, interpolation: Interpolation = "area", **kwargs: Any) -> None:
        check_tolerance(tolerance, "PointingMAP")
        super().__init__(interpolation, **kwargs)
        self.tolerance = tolerance
        keep_apart(self, tolerance)

    def update(
        self,
        maps: Tensor,
        boxes: Arrays,
        sizes: Sizes,
        labels: Labels,
        scores: Tensor | NDArray[Any] | Sequence[float],
        difficult: Arrays | None = None,
    ) -> None:
        """Add a batch of pairs of picture and class.

        Args:
            maps: (B, H, W) real, the map of each pair's class, at any resolution; it covers the whole picture.
            boxes: B tensors (N, 4), x0 y0 x1 y1 in pixels of the picture, half-open; (0, 4) for an absent class.
                Rows of NaN are objects without a box.
            sizes: B pairs (width, height) of the pictures.
            labels: (B,) integers >= 0, the pairs' classes.
            scores: (B,) the classifier's scores of the pairs, comparable between pictures.
            difficult: B tensors (N,) bool, which of the boxes are difficult; None for none.

        Raises:
            InputError: Something is of another shape or type, or not there for every map; or a score is NaN.
        """
        points = peak_points(maps, sizes)
        truth, placed, present = padded_boxes(boxes, difficult, points)
        classes = class_labels(labels, points)
        confidence = torch.as_tensor(scores, device=points.device)
        if confidence.shape != (len(points),) or confidence.isnan().any():
            raise InputError(
                f"scores: expected {len(points)} numbers, one for each map, got shape {tuple(confidence.shape)}"
                f"{' with a NaN' if confidence.isnan().any() else ''}."
            )
        kept = placed | ~present
        self.append(
            scores=confidence[kept],
            labels=classes[kept],
            correct=point_hits(points, truth, self.tolerance)[kept],
            positives=classes[placed],
        )


def pointing_accuracy(
    maps: Tensor | NDArray[Any],
    boxes: Arrays,
    sizes: Sizes,
    labels: Labels | None = None,
    difficult: Arrays | None = None,
    **options: Any,
) -> Tensor:
    """Return the pointing accuracy of a set of maps in per cent, see `PointingGame`."""
    metric = PointingGame(**options)
    metric.update(torch.as_tensor(maps), boxes, sizes, labels, difficult)
    return metric.compute()


def pointing_average_precision(
    maps: Tensor | NDArray[Any],
    boxes: Arrays,
    sizes: Sizes,
    labels: Labels,
    scores: Tensor | NDArray[Any] | Sequence[float],
    difficult: Arrays | None = None,
    **options: Any,
) -> tuple[Tensor, dict[int, float]]:
    """Return the pointing mAP of a set of maps and each class's AP in per cent, see `PointingMAP`."""
    metric = PointingMAP(**options)
    metric.update(torch.as_tensor(maps), boxes, sizes, labels, scores, difficult)
    return metric.compute(), metric.per_class()
