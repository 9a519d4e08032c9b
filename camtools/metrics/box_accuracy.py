"""MaxBoxAcc and MaxBoxAccV2: how many images are localised, at the threshold best for the data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.checks import number
from camtools.errors import InputError
from camtools.metrics.arguments import Boxes, Sizes, check_workers, each, numbers
from camtools.metrics.base import Estimate, SumMetric, best_level, weighted_sum
from camtools.metrics.box_ious import LEVELS, box_ious, largest_ious
from camtools.metrics.scoremap import PROTOCOL_SIZE, scoremaps


class BoxCurve(NamedTuple):
    """Box accuracy at every threshold.

    Attributes:
        accuracy: Per cent of the images, (T,) float64; (len(ious), T) for `MaxBoxAccV2`.
        thresholds: (T,) float64, fractions of the map's maximum.
    """

    accuracy: Tensor
    thresholds: Tensor


def box_hits(ious: Tensor, at: Sequence[float], weights: Tensor | None = None) -> Tensor:
    """Count the images that are localised at each level; `best_level` makes the metric of these counts.

    Args:
        ious: From `box_ious`, (N, T): `largest` for MaxBoxAcc, `any` for MaxBoxAccV2.
        at: IoU from which on an image is a hit, a part each.
        weights: How often each image counts, (R, N); None for each once.

    Returns:
        (R, len(at), T).
    """
    return torch.stack([weighted_sum(ious >= iou, weights) for iou in at], 1)


def checked_ious(ious: Tensor) -> Tensor:
    """Return IoUs, (B, 256).

    Raises:
        InputError: They are of another shape, or have a value outside [0, 1].
    """
    ious = numbers("ious", ious)
    if ious.dim() != 2 or ious.shape[1] != LEVELS or not bool(((ious >= 0) & (ious <= 1)).all()):
        raise InputError(f"ious: expected (B, {LEVELS}) in [0, 1] from box_ious(), got {tuple(ious.shape)}.")
    return ious


class HitMetric(SumMetric):
    """A metric made of how many images are a hit at each of the 256 levels.

    Args:
        rows: How many kinds of hits are counted.
        size: (height, width) at which maps and boxes are compared; None for the maps' own.
        workers: Threads that share the maps of a batch; None for as many as torch uses.
        settings: What decides which images are hits.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: `workers` is not such a number.
    """

    hits: Tensor
    """(rows, 256) int64, how many images are a hit of each kind at each level."""
    images: Tensor
    """() int64, how many images there were."""

    def __init__(
        self, rows: int, size: tuple[int, int] | None, workers: int | None, settings: Sequence[float], **kwargs: Any
    ) -> None:
        sums = {"hits": torch.zeros(rows, LEVELS, dtype=torch.int64), "images": torch.zeros((), dtype=torch.int64)}
        super().__init__(sums, size, *settings, **kwargs)
        self.workers = check_workers(workers)

    def updated(self) -> None:
        """Do what torchmetrics does around `update`, for other methods that add a batch."""
        self._computed, self._update_count = None, self._update_count + 1


class BoxAccuracy(HitMetric):
    """What both box accuracies share: hits counted for all 256 levels of a map, and read at the thresholds in the end.

    Args:
        ious: IoU from which on an image is a hit, each in (0, 1].
        interval: Step between thresholds, 0, interval, 2 interval ... below 1; at least 1e-6. The cost does not depend
            on it.
        size: (height, width) at which maps and boxes are compared; None for the maps' own.
        workers: Threads that share the maps of a batch; None for as many as torch uses.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 100.0
    largest_only = False
    """Whether only the contour with the largest area counts."""

    def __init__(
        self,
        ious: Sequence[float] = (0.3, 0.5, 0.7),
        interval: float = 0.001,
        size: tuple[int, int] | None = PROTOCOL_SIZE,
        workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        wanted = tuple(number("iou", iou, "(0, 1]", owner=name) for iou in each(f"{name}: ious", ious))
        if not wanted:
            raise InputError(f"{name}(ious={ious!r}): expected at least one number in (0, 1], such as 0.5.")
        step = number("interval", interval, "[1e-6, 1]", owner=name)
        super().__init__(len(wanted), size, workers, [self.largest_only, step, *wanted], **kwargs)
        self.ious, self.interval = wanted, step

    def update(self, maps: Tensor, boxes: Boxes, sizes: Sizes) -> None:
        """Add a batch.

        Args:
            maps: (B, H, W) real, the map of each image's true class, at any resolution; it covers the whole image.
                A map with a NaN, or of one value only, counts as zeros.
            boxes: B tensors (N, 4), the true boxes x0, y0, x1, y1 in pixels of the original image; being near any one
                of them is a hit. Rows of NaN are objects without a box and are left out.
            sizes: B pairs (width, height) of the original images.

        Raises:
            InputError: Something is of another shape, type or number, an image has no box, or a box is not inside it.
        """
        levels = scoremaps(maps, self.size)
        if self.largest_only:
            ious = largest_ious(levels, boxes, sizes, workers=self.workers)
        else:
            ious = box_ious(levels, boxes, sizes, workers=self.workers).any
        self.add(hits=box_hits(ious, self.ious)[0], images=len(ious))

    def update_ious(self, ious: Tensor) -> None:
        """Add a batch whose boxes were compared already, so that several metrics can share that work.

        Args:
            ious: (B, 256), from `box_ious`: `largest` for MaxBoxAcc, `any` for MaxBoxAccV2.

        Raises:
            InputError: `ious` is of another shape, or has a value outside [0, 1].
        """
        ious = checked_ious(ious)
        self.updated()
        self.add(hits=box_hits(ious, self.ious)[0], images=len(ious))

    def compute(self) -> Tensor:
        """Return the largest accuracy over the thresholds (the mean of them over several IoU), per cent, () float64.

        NaN before any image was seen.
        """
        return self._best().value[0]

    def per_iou(self) -> dict[float, float]:
        """Return the largest accuracy at each IoU, per cent, over all processes (call it in all of them)."""
        return dict(zip(self.ious, self.curve().accuracy.view(len(self.ious), -1).amax(-1).tolist(), strict=True))

    def _thresholds(self) -> tuple[Tensor, Tensor]:
        """Return the thresholds, (T,), and the levels that they read."""
        thresholds = torch.from_numpy(np.arange(0, 1, self.interval)).to(self.device)
        return thresholds, (thresholds * (LEVELS - 1)).long()

    def _best(self) -> Estimate:
        """Return the metric and the place of its thresholds among all."""
        return best_level(self.hits[None, :, self._thresholds()[1]], None, self.images[None])

    @property
    def best_threshold(self) -> Tensor:
        """The smallest best threshold of each IoU, (len(ious),) float64, over all processes (read it in all)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            best = self._thresholds()[0][self._best().levels[0]]
            return torch.where(self.images == 0, torch.nan, best)

    def curve(self) -> BoxCurve:
        """Return the accuracies at every threshold, one row per IoU, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            thresholds, levels = self._thresholds()
            return BoxCurve((100 * self.hits).double()[:, levels] / self.images, thresholds)


class MaxBoxAcc(BoxAccuracy):
    """MaxBoxAcc: per cent of images whose box has IoU >= 0.5 with a true one, at the best threshold.

    Maps are resized bicubically to 224 x 224, min-max normalised and quantised, floor(255 s). At each threshold tau the
    mask is value > int(255 tau); its box is that of the contour with the largest area, which is measured through the
    pixels' centres: a line one pixel wide has none. Of equals, OpenCV's first counts.

    Source: Choe et al., CVPR 2020, section 3.2; `BoxEvaluator` of the released code (wsolevaluation).

    Args:
        iou: IoU from which on an image is a hit, in (0, 1].
        interval: Step between the thresholds.
        size: (height, width) at which maps and boxes are compared; None for the maps' own.
        workers: Threads that share the maps of a batch; None for as many as torch uses.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    largest_only = True

    def __init__(
        self,
        iou: float = 0.5,
        interval: float = 0.001,
        size: tuple[int, int] | None = PROTOCOL_SIZE,
        workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__((iou,), interval, size, workers, **kwargs)

    @property
    def best_threshold(self) -> Tensor:
        """The smallest threshold with the largest accuracy, () float64, over all processes (read it in all of them)."""
        return super().best_threshold[0]

    def curve(self) -> BoxCurve:
        """Return the accuracy at every threshold, over all processes (call it in all of them)."""
        accuracy, thresholds = super().curve()
        return BoxCurve(accuracy[0], thresholds)


class MaxBoxAccV2(BoxAccuracy):
    """MaxBoxAccV2: as MaxBoxAcc, with the best of all contours, and the mean over IoU 0.3, 0.5 and 0.7.

    Every contour has a box, those around holes included, and the image is a hit if any of them reaches the IoU with
    any true box. Each IoU has its own best threshold.

    Source: Choe et al., "Evaluation for Weakly Supervised Object Localization", 2020 (journal version);
    `BoxEvaluator(multi_contour_eval=True)` of the released code.

    Args:
        ious: IoU from which on an image is a hit, each in (0, 1]; the result is the mean over them.
        interval: Step between the thresholds.
        size: (height, width) at which maps and boxes are compared; None for the maps' own.
        workers: Threads that share the maps of a batch; None for as many as torch uses.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """


def max_box_acc(maps: Tensor | NDArray[Any], boxes: Boxes, sizes: Sizes, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the MaxBoxAcc of a set of score maps in per cent, and its threshold, see `MaxBoxAcc`."""
    metric = MaxBoxAcc(**options)
    metric.update(numbers("maps", maps), boxes, sizes)
    return metric.compute(), metric.best_threshold


def max_box_acc_v2(maps: Tensor | NDArray[Any], boxes: Boxes, sizes: Sizes, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the MaxBoxAccV2 of a set of score maps in per cent, and its thresholds, see `MaxBoxAccV2`."""
    metric = MaxBoxAccV2(**options)
    metric.update(numbers("maps", maps), boxes, sizes)
    return metric.compute(), metric.best_threshold
