"""From score maps and truth to rows: everything that is measured of one pipeline on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from camtools.boxes import PartBoxes
from camtools.evaluation.rows import Array, Ranked, Rows
from camtools.evaluation.sample import Sample, Truth
from camtools.metrics.box_ious import LEVELS, box_ious
from camtools.metrics.localization_map import box_iou, match_boxes
from camtools.metrics.pixel import mask_ious, pixel_bins, truth_masks
from camtools.metrics.pointing import padded_boxes, peak_points, point_hits
from camtools.metrics.scoremap import PROTOCOL_SIZE
from camtools.metrics.topk_localization import class_ranks

Pairs = Sequence[tuple[Sample, Truth]]
"""The image and the truth of every row."""
_HIT = 0.5  # IoU


def score_rows(scores: Tensor, pairs: Pairs, *, masks: bool) -> Rows:
    """Measure score maps against the truth.

    Args:
        scores: (n, 224, 224) float64 in [0, 1], one map per row, normalised.
        pairs: The image and the truth of every row.
        masks: Whether the data set has masks.

    Returns:
        Rows of one pipeline, without what its own threshold and the classifier give.
    """
    count = len(pairs)
    levels = (scores * (LEVELS - 1)).to(torch.uint8)
    v1, v2 = (torch.full((count, LEVELS), torch.nan) for _ in range(2))
    boxed = [row for row, (_, truth) in enumerate(pairs) if len(truth.boxes)]
    if boxed:
        ious = box_ious(levels[boxed], [pairs[row][1].boxes for row in boxed], [pairs[row][0].size for row in boxed])
        v1[boxed], v2[boxed] = ious.largest.float(), ious.any.float()
    return Rows(
        index=np.array([sample.index for sample, _ in pairs], dtype=np.int64),
        ids=[sample.id for sample, _ in pairs],
        labels=np.array([truth.label for _, truth in pairs], dtype=np.int64),
        names=[truth.name for _, truth in pairs],
        sizes=np.array([sample.size for sample, _ in pairs], dtype=np.int64).reshape(-1, 2),
        truth=[truth.boxes.float().numpy() for _, truth in pairs],
        v1=v1.numpy()[None],
        v2=v2.numpy()[None],
        pointing=_pointing(scores, pairs)[None],
        **(_mask_scores(scores, levels, pairs) if masks else {}),
    )


def with_own(rows: Rows, masks: Tensor, boxes: Sequence[Tensor], thresholds: Tensor, pairs: Pairs) -> Rows:
    """Add what a pipeline's own masks give.

    Args:
        rows: From `score_rows`.
        masks: (n, H, W) bool, each covering its whole image, at any resolution.
        boxes: Of the parts of each, largest first, n tensors (m, 4) in the masks' pixels.
        thresholds: (n,) fractions.
        pairs: The image and the truth of every row.
    """
    count = len(pairs)
    own_box, own_iou = torch.full((count, 4), torch.nan), torch.full((count,), torch.nan)
    for row, (found, (sample, truth)) in enumerate(zip(boxes, pairs, strict=True)):
        first = _in_image(found[:1], masks.shape[-2:], sample)
        if len(first):
            own_box[row] = first[0]
        if len(truth.boxes):
            own_iou[row] = box_iou(first.double(), truth.boxes.double()).max() if len(first) else 0.0
    rows = replace(
        rows,
        own_iou=own_iou.numpy()[None],
        own_box=own_box.numpy()[None],
        own_threshold=thresholds.detach().float().cpu().numpy()[None],
    )
    if rows.mask_iou is None:
        return rows
    small = truth_masks(masks.cpu(), None, count, PROTOCOL_SIZE)[0]
    truth_of, ignore = _stacked(pairs)
    counted = truth_of | ~ignore
    both, either = (small & truth_of & counted).flatten(1).sum(1), ((small | truth_of) & counted).flatten(1).sum(1)
    own_mask_iou = torch.where(truth_of.flatten(1).any(1), both / either, torch.nan)
    return replace(rows, own_mask_iou=own_mask_iou.float().numpy()[None])


def with_classifier(rows: Rows, logits: Tensor, probabilities: Tensor) -> Rows:
    """Add each class's rank among the logits, lower indices first of equals, and its probability.

    Args:
        rows: N of them.
        logits: Of each row's image, (N, K) on the CPU.
        probabilities: Likewise.
    """
    labels = torch.from_numpy(rows.labels)
    score = probabilities.gather(1, labels[:, None])[:, 0].float()
    return replace(rows, rank=class_ranks(logits, labels).numpy(), score=score.numpy())


def ranked_detections(
    scores: Tensor,
    parts: Sequence[PartBoxes],
    size: Sequence[int],
    sample: Sample,
    labels: Tensor,
    confidence: Tensor,
) -> dict[str, Ranked]:
    """Match one image's detections of all classes with its objects.

    Args:
        scores: (K', 224, 224) float64, the score map of every class.
        parts: Of the pipeline's own masks, K'; a box's score is the classifier's times the map's maximum in its part.
        size: (H, W) of these masks.
        sample: The image.
        labels: (K',) the model's classes.
        confidence: (K',) the classifier's scores.

    Returns:
        The "boxes" and the "points".
    """
    counts = torch.tensor([len(found.boxes) for found in parts])
    boxes = _in_image(torch.cat([found.boxes for found in parts]), size, sample).double()
    owner = labels.repeat_interleave(counts)
    sure = confidence.repeat_interleave(counts) * torch.cat([found.peaks for found in parts])
    exists, hard = ~sample.boxes.isnan().any(1), sample.difficult
    comparable = (owner[:, None] == sample.labels[None]) & exists[None]
    ious = torch.where(comparable, box_iou(boxes, sample.boxes.double()), -1.0)
    correct, ignored = match_boxes(ious, sure, hard, _HIT)
    points = peak_points(scores.cpu(), [sample.size] * len(labels))
    own = [sample.labels == label for label in labels.tolist()]
    truth, placed, present = padded_boxes([sample.boxes[of] for of in own], [hard[of] for of in own], points)
    return {
        "boxes": _ranked(sample, owner, sure, correct, ~ignored, sample.labels[exists & ~hard]),
        "points": _ranked(sample, labels, confidence, point_hits(points, truth), placed | ~present, labels[placed]),
    }


def _ranked(sample: Sample, labels: Tensor, scores: Tensor, correct: Tensor, kept: Tensor, true: Tensor) -> Ranked:
    return Ranked(
        image=np.full(int(kept.sum()), sample.index),
        label=labels[kept].numpy(),
        score=scores[kept].float().numpy(),
        correct=correct[kept].numpy(),
        true_image=np.full(len(true), sample.index),
        true_label=true.numpy(),
    )


def _in_image(boxes: Tensor, size: Sequence[int], sample: Sample) -> Tensor:
    """Return boxes (m, 4) of a mask of this (H, W) in pixels of its image, float32."""
    return boxes * torch.tensor([sample.size[0] / size[1], sample.size[1] / size[0]] * 2)


def _pointing(scores: Tensor, pairs: Pairs) -> Array:
    """Return 1 for a hit, 0 for a miss, NaN without a box, (n,) float32."""
    points = peak_points(scores, [sample.size for sample, _ in pairs]).cpu()
    truth, placed, _ = padded_boxes([truth.boxes for _, truth in pairs], None, points)
    return torch.where(placed, point_hits(points, truth).float(), torch.nan).numpy()


def _stacked(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the rows' masks and what to ignore, (n, 224, 224) bool each; a row without a mask has an empty one."""
    blank = torch.zeros(PROTOCOL_SIZE, dtype=torch.bool)
    truths = [truth for _, truth in pairs]
    masks = torch.stack([blank if truth.mask is None else truth.mask for truth in truths])
    return masks, torch.stack([blank if truth.ignore is None else truth.ignore for truth in truths])


def _mask_scores(scores: Tensor, levels: Tensor, pairs: Pairs) -> dict[str, Array]:
    """Return the columns of masks, of one pipeline."""
    masks, ignore = (part.to(scores.device) for part in _stacked(pairs))
    known = torch.tensor([truth.mask is not None for _, truth in pairs], device=scores.device).view(-1, 1, 1)
    bins = (part.cpu().numpy().astype(np.uint16)[None] for part in pixel_bins(scores, masks, (masks | ~ignore) & known))
    ious = mask_ious(levels, masks, ignore).float().cpu().numpy()[None]
    return dict(zip(("mask_iou", "on_objects", "elsewhere"), (ious, *bins), strict=True))
