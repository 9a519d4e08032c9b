"""Localisation mAP: detections matched with true boxes by the rules of the VOC devkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import ops

from camtools.checks import flag, number
from camtools.errors import InputError
from camtools.metrics.arguments import box_rows, class_labels, each, flags, ranked_scores
from camtools.metrics.average_precision import Interpolation, RankedMetric
from camtools.metrics.base import keep_apart

Detections = Mapping[str, Any]


class LocalizationMAP(RankedMetric):
    """Mean average precision of detected boxes, by the rules of the VOC devkit, per cent.

    Detections of a class are ranked by score. Each is compared with the true box of its class and image that it
    overlaps most (the first of equals): a true positive if their IoU is at least `iou_threshold` and no higher ranked
    detection took that box, a false positive otherwise; it counts for nothing if that box is difficult. The mean is
    over the classes with at least one object that is not difficult. COCO's rules, `torchmetrics.detection.
    MeanAveragePrecision`, differ: there a detection whose best box is taken may take the next best, and precision is
    read at 101 recalls.

    Source: Everingham et al., IJCV 2010 and 2015; `VOCevaldet.m` of the devkit.

    Args:
        iou_threshold: IoU from which a box is found, in (0, 1].
        interpolation: "area" (VOC 2010 and later) or "11-point" (VOC 2007).
        pixel_inclusive: Whether x1 and y1 are the last pixels inside, as in VOC's files, so that a width is
            x1 - x0 + 1. False for half-open boxes, those of camtools and its data sets: the same boxes, read so, give
            exactly the devkit's IoU.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    def __init__(
        self,
        iou_threshold: float = 0.5,
        interpolation: Interpolation = "area",
        pixel_inclusive: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(interpolation, **kwargs)
        self.iou_threshold = number("iou_threshold", iou_threshold, "(0, 1]", owner="LocalizationMAP")
        self.pixel_inclusive = flag("pixel_inclusive", pixel_inclusive, owner="LocalizationMAP")
        keep_apart(self, iou_threshold, pixel_inclusive)

    def update(self, preds: Sequence[Detections], target: Sequence[Detections]) -> None:
        """Add a batch of images.

        Args:
            preds: For each image "boxes" (n, 4), x0 y0 x1 y1 in pixels, "scores" (n,) and "labels" (n,), the classes.
            target: For each image "boxes" (m, 4), "labels" (m,) and, where there are some, "difficult" (m,) bool.
                Rows of NaN are objects without a box: they can't be found, and are left out.

        Raises:
            InputError: Something is missing, or of another shape or type, or a box ends before it begins.
        """
        preds = each("preds", preds, len(each("target", target)), "images of the truth")
        detected = [_read(pred, f"preds[{index}]", "scores") for index, pred in enumerate(preds)]
        truth = [_read(true, f"target[{index}]", "difficult") for index, true in enumerate(target)]
        for (boxes, labels, scores), (true_boxes, true_labels, difficult) in zip(detected, truth, strict=True):
            exists = ~true_boxes.isnan().any(-1)
            ious = box_iou(boxes, true_boxes, pixel_inclusive=self.pixel_inclusive)
            comparable = (labels[:, None] == true_labels) & exists
            correct, ignored = match_boxes(torch.where(comparable, ious, -1.0), scores, difficult, self.iou_threshold)
            self.append(
                scores=scores[~ignored],
                labels=labels[~ignored],
                correct=correct[~ignored],
                positives=true_labels[exists & ~difficult],
            )


def localization_average_precision(
    preds: Sequence[Detections], target: Sequence[Detections], **options: Any
) -> tuple[Tensor, dict[int, float]]:
    """Return the localisation mAP of a set of images and each class's AP in per cent, see `LocalizationMAP`."""
    metric = LocalizationMAP(**options)
    metric.update(preds, target)
    return metric.compute(), metric.per_class()


def match_boxes(ious: Tensor, scores: Tensor, difficult: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Match an image's detections with its true boxes by the VOC devkit's rule.

    Args:
        ious: (n, m), of each detection with each true box; -1 where they are not to be compared.
        scores: (n,), the order in which detections take boxes; the first of equals comes first.
        difficult: (m,) bool.
        threshold: IoU from which a box is found.

    Returns:
        Which detections are true positives and which count for nothing, both (n,) bool; the others are false
        positives.
    """
    count, boxes = ious.shape
    if boxes == 0 or count == 0:
        none = torch.zeros(count, dtype=torch.bool, device=ious.device)
        return none, none
    best = ious.argmax(-1)
    overlaps = ious.gather(-1, best[:, None])[:, 0] >= threshold
    ignored = overlaps & difficult[best]
    candidate = overlaps & ~ignored
    rank = scores.argsort(stable=True, descending=True).argsort()
    rank = torch.where(candidate, rank, count)
    first = torch.full((boxes,), count, device=ious.device).scatter_reduce(0, best, rank, "amin")
    return candidate & (rank == first[best]), ignored


def box_iou(boxes: Tensor, others: Tensor, *, pixel_inclusive: bool = False) -> Tensor:
    """Return the IoU of every box with every other.

    Args:
        boxes: (n, 4), x0 y0 x1 y1.
        others: (m, 4).
        pixel_inclusive: Whether x1 and y1 still are inside, so that a width is x1 - x0 + 1.

    Returns:
        (n, m) in [0, 1]; 0 where both boxes are empty or one is NaN.
    """
    last = boxes.new_tensor([0, 0, 1, 1]) * pixel_inclusive
    return ops.box_iou(boxes + last, others + last).nan_to_num(0.0)


def _read(given: Detections, name: str, extra: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (n, 4) float64, labels (n,) int64 and scores or difficult, (n,), of one image, checked."""
    needed = ["boxes", "labels"] if extra == "difficult" else ["boxes", "labels", extra]
    missing = [key for key in needed if not isinstance(given, Mapping) or key not in given]
    if missing:
        raise InputError(f"{name}: expected a dict with {needed}, and there is no {missing[0]!r}.")
    boxes = box_rows(f"{name}['boxes']", given["boxes"], blank=extra == "difficult")
    labels = class_labels(f"{name}['labels']", given["labels"], len(boxes), "boxes", boxes.device)
    if extra == "scores":
        return boxes, labels, ranked_scores(f"{name}['scores']", given[extra], len(boxes), "boxes", boxes.device)
    difficult = given.get(extra)
    blank = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    own = blank if difficult is None else flags(f"{name}['difficult']", difficult, len(boxes), boxes.device)
    return boxes, labels, own
