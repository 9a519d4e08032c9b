"""Top-1, Top-5 and GT-known localisation: the box fits, and the class is right as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.checks import number, share, whole
from camtools.errors import InputError
from camtools.metrics.arguments import Boxes, Labels, Sizes, box_rows, class_labels, each, numbers
from camtools.metrics.base import best_level
from camtools.metrics.box_accuracy import HitMetric, box_hits, checked_ious
from camtools.metrics.box_ious import LEVELS, checked_boxes, largest_ious
from camtools.metrics.localization_map import box_iou
from camtools.metrics.scoremap import PROTOCOL_SIZE, THRESHOLDS, scoremaps


def topk_hits(
    ious: Tensor, ranks: Tensor, top: Sequence[int], iou: float = 0.5, weights: Tensor | None = None
) -> Tensor:
    """Count the images that are localised at each level, and whose class is among the k likeliest besides.

    Args:
        ious: `largest` of `box_ious`, (N, T).
        ranks: From `class_ranks`, (N,).
        top: The k.
        iou: IoU from which on a box is right.
        weights: How often each image counts, (R, N); None for each once.

    Returns:
        (R, 1 + len(top), T), of GT-known first: `best_level` of it chooses the level for all.
    """
    right = [ious] + [torch.where((ranks < k)[:, None], ious, 0.0) for k in top]
    return torch.cat([box_hits(kept, (iou,), weights) for kept in right], 1)


class TopKLocalization(HitMetric):
    """Top-1 Loc, Top-5 Loc and GT-known Loc, per cent of the images.

    GT-known: the box from the true class's map has IoU >= 0.5 with a true box. Top-k: the true class is among the k
    largest logits besides. Boxes come from maps, as in `MaxBoxAcc`, at one threshold for all images (`update`), or
    from the caller's own pipeline (`update_boxes`).

    Source: Choe et al., CVPR 2020, section 3.2; Russakovsky et al., IJCV 2015 (ILSVRC localisation).

    Args:
        threshold: tau in [0, 1), the fraction of a map's maximum that a pixel has to exceed; "best" for the smallest of
            0, 0.001 ... 0.999 with the largest GT-known, the threshold of `MaxBoxAcc`. Given boxes do not depend on it.
        top: The k to report.
        iou: IoU from which on a box is right, in (0, 1].
        size: (height, width) at which maps and boxes are compared; None for the maps' own.
        workers: Threads that share the maps of a batch; None for as many as torch uses.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    def __init__(
        self,
        threshold: float | Literal["best"] = "best",
        top: Sequence[int] = (1, 5),
        iou: float = 0.5,
        size: tuple[int, int] | None = PROTOCOL_SIZE,
        workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        best = isinstance(threshold, str) and threshold == "best"
        fixed = -1.0 if best else share("threshold", threshold, owner="TopKLocalization")
        self_top = tuple(whole("top", k, 1, 2**31, owner="TopKLocalization") for k in each("top", top))
        iou = number("iou", iou, "(0, 1]", owner="TopKLocalization")
        super().__init__(1 + len(self_top), size, workers, [fixed, iou, *self_top], **kwargs)
        self.threshold: float | Literal["best"] = "best" if best else fixed
        self.top, self.iou = self_top, iou

    def update(self, maps: Tensor, boxes: Boxes, sizes: Sizes, logits: Tensor, labels: Labels) -> None:
        """Add a batch of maps.

        Args:
            maps: (B, H, W) real, the map of each image's true class, at any resolution.
            boxes: B tensors (N, 4), the true boxes x0, y0, x1, y1 in pixels of the original image.
            sizes: B pairs (width, height) of the original images.
            logits: (B, K), the classifier's scores.
            labels: (B,) integers, the true classes.

        Raises:
            InputError: Something is of another shape, type or number, or outside its range.
        """
        ranks = class_ranks(logits, labels)
        self._add(largest_ious(scoremaps(maps, self.size), boxes, sizes, workers=self.workers), ranks)

    def update_boxes(
        self, predicted: Tensor | NDArray[Any], boxes: Boxes, sizes: Sizes, logits: Tensor, labels: Labels
    ) -> None:
        """Add a batch of boxes that a pipeline of the caller's found, one per image.

        They are compared in pixels of the original image, half-open (an area is width * height), neither scaled nor
        truncated.

        Args:
            predicted: (B, 4) x0, y0, x1, y1; a row of NaN is an image without a box: a miss.
            boxes: As in `update`.
            sizes: As in `update`.
            logits: As in `update`.
            labels: As in `update`.

        Raises:
            InputError: As in `update`.
        """
        ranks = class_ranks(logits, labels)
        boxed = box_rows("predicted", predicted, "cpu")
        truths = checked_boxes(boxes, sizes, len(boxed))
        best = [
            box_iou(box[None], torch.from_numpy(truth)).max().item() for box, truth in zip(boxed, truths, strict=True)
        ]
        self.update_ious(torch.tensor(best, dtype=torch.float64).view(-1, 1).expand(-1, LEVELS), ranks)

    def update_ious(self, ious: Tensor, ranks: Tensor) -> None:
        """Add a batch whose boxes were compared already, so that several metrics can share that work.

        Args:
            ious: (B, 256), `largest` of `box_ious`.
            ranks: (B,) from `class_ranks`.

        Raises:
            InputError: The shapes are others.
        """
        ious, ranks = checked_ious(ious), class_labels("ranks", ranks, len(ious), "rows of ious")
        self.updated()
        self._add(ious, ranks)

    def _add(self, ious: Tensor, ranks: Tensor) -> None:
        """Count the hits of a batch, (B, 256)."""
        if ious.shape != (len(ranks), LEVELS):
            raise InputError(
                f"got boxes of {len(ious)} images, {tuple(ious.shape)}, and {len(ranks)} rows of logits; expected as "
                "many of both."
            )
        self.add(hits=topk_hits(ious.to(ranks.device), ranks, self.top, self.iou)[0], images=len(ranks))

    def compute(self) -> dict[str, Tensor]:
        """Return "gt_known" and, for each k, "top1", "top5" in per cent, () float64 each; NaN before any image."""
        scores = (100 * self.hits).double()[:, self._level()] / self.images
        return dict(zip(["gt_known", *(f"top{k}" for k in self.top)], scores, strict=True))

    @property
    def best_threshold(self) -> Tensor:
        """The threshold in use, () float64, over all processes (read it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            if self.threshold != "best":
                return torch.tensor(float(self.threshold), dtype=torch.float64, device=self.device)
            index = int((THRESHOLDS * (LEVELS - 1)).long().eq(self._level()).nonzero()[0])
            return torch.where(self.images == 0, torch.nan, THRESHOLDS[index].to(self.device))

    def _level(self) -> int:
        """Return the level at which boxes are read; no threshold below 1 reaches the last."""
        if self.threshold != "best":
            return int(self.threshold * (LEVELS - 1))
        return int(best_level(self.hits[None, :1, : LEVELS - 1], None, self.images[None]).levels)


def class_ranks(logits: Tensor, labels: Labels) -> Tensor:
    """Return how many classes come before the true one, by logit; of equal logits the lower index comes first.

    Args:
        logits: (B, K), no NaN.
        labels: (B,) integers in [0, K).

    Returns:
        (B,) int64 on the logits' device, 0 where the true class is the likeliest: among the top k when < k.

    Raises:
        InputError: Something is of another shape or type, a label is no class, or a logit is NaN.
    """
    logits = numbers("logits", logits)
    if logits.dim() != 2:
        raise InputError(f"logits: expected shape (B, K), got {tuple(logits.shape)}.")
    true = class_labels("labels", labels, len(logits), "rows of logits", logits.device)
    if (true >= logits.shape[1]).any():
        raise InputError(
            f"labels: expected classes in [0, {logits.shape[1] - 1}] for {logits.shape[1]} logits, got "
            f"{int(true.min())} to {int(true.max())}."
        )
    if logits.isnan().any():
        raise InputError(f"logits[{int(logits.isnan().any(1).nonzero()[0])}] has a NaN, which has no rank.")
    own = logits.gather(1, true[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < true[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1)


def topk_localization(
    maps: Tensor | NDArray[Any], boxes: Boxes, sizes: Sizes, logits: Tensor, labels: Labels, **options: Any
) -> dict[str, Tensor]:
    """Return GT-known, Top-1 and Top-5 Loc of a set of score maps in per cent, see `TopKLocalization`."""
    metric = TopKLocalization(**options)
    metric.update(numbers("maps", maps), boxes, sizes, logits, labels)
    return metric.compute()
