"""Pointing: does a map's maximum lie on an object of its class? Accuracy, and the mean average precision of Oquab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from camtools.checks import number, one_of
from camtools.errors import InputError
from camtools.metrics.arguments import (
    Labels,
    Sizes,
    box_rows,
    class_labels,
    each,
    flags,
    image_sizes,
    numbers,
    ranked_scores,
)
from camtools.metrics.average_precision import Interpolation, RankedMetric
from camtools.metrics.base import ListMetric, keep_apart, weighted_mean
from camtools.metrics.scoremap import checked_maps

Arrays = Sequence[Tensor | NDArray[Any]]
Average = Literal["pairs", "classes"]

TOLERANCE = 18
"""Pixels of tolerance in Oquab et al. 2015: the pooling ratio of their network."""


def peak_points(maps: Tensor, sizes: Sizes) -> Tensor:
    """Return where in its image each map is largest.

    Maps are resized to their images bilinearly in float64 (half-pixel centres, no antialiasing). Values closer to the
    maximum than 1e-9 of the map's range count as equal to it, so that rounding decides nothing; of equals the first in
    raster order is taken. A map of one value thus points at the top left pixel.

    Args:
        maps: (B, H, W) real, at any resolution; a map covers the whole image.
        sizes: B pairs (width, height) of the images.

    Returns:
        (B, 2) int64 on the maps' device: x, y of the pixel; -1, -1 for a map with a NaN.

    Raises:
        InputError: `maps` is not such a tensor or has an infinite value, or there is not one size for each map.
    """
    maps = checked_maps(maps)
    pairs = image_sizes(sizes, len(maps), in_memory=True)
    points = torch.full((len(maps), 2), -1, dtype=torch.int64, device=maps.device)
    for width, height in set(pairs):
        same = torch.tensor([pair == (width, height) for pair in pairs], device=maps.device)
        resized = maps[same]
        if resized.shape[1:] != (height, width):
            resized = interpolate(resized[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        flat = resized.flatten(1)
        high, low = flat.amax(1, keepdim=True), flat.amin(1, keepdim=True)
        rounding = (
            16 * torch.finfo(flat.dtype).eps * torch.maximum(high.abs(), low.abs())
        )  # a constant map has no range
        peaks = flat >= high - 1e-9 * (high - low) - rounding
        first = peaks.byte().argmax(1)
        broken = maps[same].flatten(1).isnan().any(1, keepdim=True)  # its NaN may fall between the image's pixels
        points[same] = torch.where(broken, -1, torch.stack([first % width, first // width], 1))
    return points


def point_hits(points: Tensor, boxes: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return which points lie in any of their boxes, enlarged on all sides.

    Args:
        points: (B, 2) integer, x, y of pixels; negative for no point.
        boxes: (B, N, 4) float, x0 y0 x1 y1 in pixels, half-open; NaN rows for no box.
        tolerance: Pixels by which boxes are enlarged; pixel x is inside when x0 - tolerance <= x < x1 + tolerance.

    Returns:
        (B,) bool.
    """
    place = points[:, None].to(boxes.dtype)
    inside = (place >= boxes[..., :2] - tolerance) & (place < boxes[..., 2:] + tolerance)
    return (inside.all(-1) & (points >= 0).all(-1, keepdim=True)).any(-1)


def padded_boxes(boxes: Arrays, difficult: Arrays | None, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check each pair's boxes and put them into one tensor.

    Args:
        boxes: B of (N, 4), x0 y0 x1 y1; NaN rows for objects without a box.
        difficult: B of (N,) bool, or None for none.
        points: (B, 2), for B and the device.

    Returns:
        The boxes padded with NaN, (B, N, 4) float64; which pairs have a box that is not difficult, and which have any
        row at all, both (B,) bool.

    Raises:
        InputError: There are not B of them, one is of another shape or type, or a box ends before it begins.
    """
    count, device = len(points), points.device
    rows = [box_rows(f"boxes[{index}]", part, device) for index, part in enumerate(each("boxes", boxes, count))]
    hard = [torch.zeros(len(row), dtype=torch.bool, device=device) for row in rows]
    if difficult is not None:
        given = zip(each("difficult", difficult, count), rows, strict=True)
        hard = [flags(f"difficult[{index}]", part, len(row), device) for index, (part, row) in enumerate(given)]
    present = torch.tensor([len(row) > 0 for row in rows], dtype=torch.bool, device=device)
    if not rows:
        return torch.zeros((0, 0, 4), dtype=torch.float64, device=device), present, present
    truth = pad_sequence(rows, batch_first=True, padding_value=torch.nan)
    counts = ~truth.isnan().any(-1) & ~pad_sequence(hard, batch_first=True, padding_value=True)
    return truth, counts.any(-1), present


class PointingGame(ListMetric):
    """Pointing accuracy: how often the maximum of a class's map lies in a box of that class, per cent.

    Every map is of one class that is in its image. It is resized to the image, and its maximum is a hit inside any
    box of the class, enlarged by `tolerance` pixels on all sides. Pairs of image and class of which all boxes are
    difficult, or which have none, are left out; difficult boxes beside others count as boxes.

    Source: Oquab et al., CVPR 2015 (18 pixels). Zhang et al., IJCV 2018 (the pointing game) accept less than 15 pixels
    in a straight line instead, so that the corners of the enlarged boxes are round, and report the mean over the
    classes. With `tolerance=0` the maximum must be inside.

    Args:
        tolerance: Pixels of the original image, >= 0.
        average: What `compute` returns: "pairs", the mean over all pairs, or "classes", the mean over the classes.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    hits: list[Tensor]
    """(N,) uint8, 1 for a hit; one entry per pair that counts."""
    labels: list[Tensor]
    """(N,) int64, the pairs' classes; -1 where none was given."""

    def __init__(self, tolerance: float = TOLERANCE, average: Average = "pairs", **kwargs: Any) -> None:
        one_of("average", average, get_args(Average), owner="PointingGame")
        super().__init__({"hits": torch.uint8, "labels": torch.int64}, **kwargs)
        self.tolerance = number("tolerance", tolerance, "[0, inf)", owner="PointingGame")
        keep_apart(self, tolerance)
        self.average: Average = average

    def update(
        self, maps: Tensor, boxes: Arrays, sizes: Sizes, labels: Labels | None = None, difficult: Arrays | None = None
    ) -> None:
        """Add a batch of pairs of image and class.

        Args:
            maps: (B, H, W) real, the map of each pair's class, at any resolution; it covers the whole image.
            boxes: B tensors (N, 4), x0 y0 x1 y1 in pixels of the image, half-open: the boxes of the pair's class.
                Rows of NaN are objects without a box.
            sizes: B pairs (width, height) of the images.
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
        classes = torch.full_like(points[:, 0], -1)
        if labels is not None:
            classes = class_labels("labels", labels, len(points), device=points.device)
        self.append(hits=point_hits(points, truth, self.tolerance)[placed], labels=classes[placed])

    def compute(self) -> Tensor:
        """Return the accuracy in per cent, () float64; NaN before any pair that counts was seen."""
        if self.average == "pairs":
            return weighted_mean(self.joined("hits"))[0]
        return torch.tensor(list(self._per_class().values()), dtype=torch.float64, device=self.device).mean()

    def per_class(self) -> dict[int, float]:
        """Return every class's accuracy in per cent, over all processes (call it in all of them).

        Raises:
            InputError: Maps were added without labels.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._per_class()

    def _per_class(self) -> dict[int, float]:
        labels, hits = self.joined("labels"), self.joined("hits")
        if (labels < 0).any():
            raise InputError("per_class(): some maps were added without their class; give labels at every update.")
        return {label: weighted_mean(hits[labels == label]).item() for label in labels.unique().tolist()}


class PointingMAP(RankedMetric):
    """Pointing mAP: the mean over classes of the average precision of classifying and pointing at once, per cent.

    Every pair of image and class is one detection, its score the classifier's, its place the maximum of the class's
    map. It is a true positive if it points at a box of the class (see `PointingGame`), else a false positive: also
    where the class is not in the image. There is one object to find per image and class. Therefore all classes of all
    images have to be given, absent ones with no boxes; the map of an absent class does not matter. Pairs whose boxes
    are all difficult, or all without a place, are left out.

    Source: Oquab et al., CVPR 2015, the location prediction metric. It does not say how the curve is summarised; here
    as for detections, see `average_precision`.

    Args:
        tolerance: Pixels of the original image, >= 0.
        interpolation: "area" (VOC 2010 and later) or "11-point" (VOC 2007).
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    def __init__(self, tolerance: float = TOLERANCE, interpolation: Interpolation = "area", **kwargs: Any) -> None:
        super().__init__(interpolation, **kwargs)
        self.tolerance = number("tolerance", tolerance, "[0, inf)", owner="PointingMAP")
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
        """Add a batch of pairs of image and class.

        Args:
            maps: (B, H, W) real, the map of each pair's class, at any resolution; it covers the whole image.
            boxes: B tensors (N, 4), x0 y0 x1 y1 in pixels of the image, half-open; (0, 4) for an absent class.
                Rows of NaN are objects without a box.
            sizes: B pairs (width, height) of the images.
            labels: (B,) integers >= 0, the pairs' classes.
            scores: (B,) the classifier's scores of the pairs, comparable between images.
            difficult: B tensors (N,) bool, which of the boxes are difficult; None for none.

        Raises:
            InputError: Something is of another shape or type, or not there for every map; or a score is NaN.
        """
        points = peak_points(maps, sizes)
        truth, placed, present = padded_boxes(boxes, difficult, points)
        classes = class_labels("labels", labels, len(points), device=points.device)
        confidence = ranked_scores("scores", scores, len(points), "maps", points.device)
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
    metric.update(numbers("maps", maps), boxes, sizes, labels, difficult)
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
    metric.update(numbers("maps", maps), boxes, sizes, labels, scores, difficult)
    return metric.compute(), metric.per_class()
