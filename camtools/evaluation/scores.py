"""From score maps and truth to rows: everything that is measured of one pipeline on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.boxes import SPECK, boxes_from_masks
from camtools.evaluation.sample import Sample, Truth
from camtools.metrics.box_ious import LEVELS, box_ious
from camtools.metrics.localization_map import box_iou, match_boxes
from camtools.metrics.pixel import mask_ious, truth_masks
from camtools.metrics.pointing import padded_boxes, peak_points, point_hits
from camtools.metrics.scoremap import BIN_EDGES, PROTOCOL_SIZE

Arrays = dict[str, NDArray[Any]]
BINS = len(BIN_EDGES)
_FOUND = 0.5  # IoU


def score_rows(scores: Tensor, pairs: Sequence[tuple[Sample, Truth]], *, masks: bool) -> Arrays:
    """Measure score maps against the truth.

    Args:
        scores: (n, 224, 224) float64 in [0, 1], one map a row, normalised.
        pairs: The image and the truth of every row.
        masks: Whether the data set has masks.

    Returns:
        Arrays with a row each: "v1" and "v2" (n, 256), "pointing" (n,), and with masks "mask_iou" (n, 256),
        "on_objects" and "elsewhere" (n, 1001); see `Rows`.
    """
    count = len(pairs)
    levels = (scores * (LEVELS - 1)).to(torch.uint8)
    v1, v2 = (torch.full((count, LEVELS), torch.nan) for _ in range(2))
    boxed = [row for row, (_, truth) in enumerate(pairs) if len(truth.boxes)]
    if boxed:
        boxes = [pairs[row][1].boxes for row in boxed]
        found = box_ious(levels[boxed], boxes, [pairs[row][0].size for row in boxed])
        v1[boxed], v2[boxed] = found.largest.float(), found.any.float()
    out = {"v1": v1.numpy(), "v2": v2.numpy(), "pointing": _pointing(scores, pairs)}
    return out | _mask_scores(scores, levels, pairs) if masks else out


def own_rows(masks: Tensor, thresholds: Tensor, pairs: Sequence[tuple[Sample, Truth]], *, has_masks: bool) -> Arrays:
    """Measure a pipeline's own masks.

    Args:
        masks: (n, H, W) bool, each covering its whole image, at any resolution.
        thresholds: (n,) fractions.
        pairs: The image and the truth of every row.
        has_masks: Whether the data set has masks.

    Returns:
        "own_iou" (n,), "own_box" (n, 4), "own_threshold" (n,), and with masks "own_mask_iou" (n,); see `Rows`.
    """
    count = len(pairs)
    own_box, own_iou = torch.full((count, 4), torch.nan), torch.full((count,), torch.nan)
    for row, (boxes, (_, truth)) in enumerate(zip(image_boxes(masks, pairs), pairs, strict=True)):
        if len(boxes):
            own_box[row] = boxes[0]
        if len(truth.boxes):
            own_iou[row] = box_iou(boxes[:1].double(), truth.boxes.double()).max() if len(boxes) else 0.0
    out = {
        "own_iou": own_iou.numpy(),
        "own_box": own_box.numpy(),
        "own_threshold": thresholds.detach().float().cpu().numpy(),
    }
    if has_masks:
        small = truth_masks(masks.cpu(), None, count, PROTOCOL_SIZE)[0]
        truth_of, ignore = _stacked(pairs)
        counted = truth_of | ~ignore
        both, either = (small & truth_of & counted).flatten(1).sum(1), ((small | truth_of) & counted).flatten(1).sum(1)
        defined = truth_of.flatten(1).any(1)
        out["own_mask_iou"] = torch.where(defined, both / either, torch.nan).float().numpy()
    return out


def image_boxes(masks: Tensor, pairs: Sequence[tuple[Sample, Any]]) -> list[Tensor]:
    """Return the boxes of masks, largest component first, (m, 4) float32 in pixels of their images."""
    height, width = masks.shape[-2:]
    found = []
    for boxes, (sample, _) in zip(boxes_from_masks(masks, SPECK), pairs, strict=True):
        scale = torch.tensor([sample.size[0] / width, sample.size[1] / height] * 2)
        found.append(boxes * scale)
    return found


def ranked_rows(scores: Tensor, masks: Tensor, sample: Sample, labels: Tensor, confidence: Tensor) -> Arrays:
    """Match one image's detections of all classes with its objects.

    Args:
        scores: (K', 224, 224) float64, the score map of every class.
        masks: (K', H, W) bool, the pipeline's own masks.
        sample: The image.
        labels: (K',) the model's classes.
        confidence: (K',) the classifier's scores.

    Returns:
        The tables "boxes", "true_boxes", "points" and "true_points", see `Ranked`.
    """
    found = image_boxes(masks, [(sample, None)] * len(labels))
    counts = torch.tensor([len(boxes) for boxes in found])
    boxes, owner = torch.cat(found).double(), labels.repeat_interleave(counts)
    sure = confidence.repeat_interleave(counts)
    exists = ~sample.boxes.isnan().any(1)
    comparable = (owner[:, None] == sample.labels[None]) & exists[None]
    ious = torch.where(comparable, box_iou(boxes, sample.boxes.double()), -1.0)
    hard = sample.difficult
    correct, ignored = (part[0] for part in match_boxes(ious[None], sure[None], hard[None], _FOUND))
    out = _ranked("boxes", sample, owner, sure, correct, ~ignored, sample.labels[exists & ~hard])
    points = peak_points(scores.cpu(), [sample.size] * len(labels))
    own = [sample.labels == label for label in labels.tolist()]
    truth, placed, present = padded_boxes([sample.boxes[one] for one in own], [hard[one] for one in own], points)
    hits = point_hits(points, truth)
    return out | _ranked("points", sample, labels, confidence, hits, placed | ~present, labels[placed])


def _ranked(
    kind: str, sample: Sample, labels: Tensor, scores: Tensor, correct: Tensor, kept: Tensor, true: Tensor
) -> Arrays:
    detections, objects = int(kept.sum()), len(true)
    return {
        f"{kind}/index": np.full(detections, sample.index),
        f"{kind}/label": labels[kept].numpy(),
        f"{kind}/score": scores[kept].float().numpy(),
        f"{kind}/correct": correct[kept].numpy(),
        f"true_{kind}/index": np.full(objects, sample.index),
        f"true_{kind}/label": true.numpy(),
    }


def _pointing(scores: Tensor, pairs: Sequence[tuple[Sample, Truth]]) -> NDArray[np.float32]:
    """Return 1 for a hit, 0 for a miss, NaN without a box, (n,)."""
    points = peak_points(scores, [sample.size for sample, _ in pairs]).cpu()
    truth, placed, _ = padded_boxes([truth.boxes for _, truth in pairs], None, points)
    return torch.where(placed, point_hits(points, truth).float(), torch.nan).numpy()


def _stacked(pairs: Sequence[tuple[Sample, Truth]]) -> tuple[Tensor, Tensor]:
    """Return the rows' masks and what to ignore, (n, 224, 224) bool each; a row without a mask has an empty one."""
    blank = torch.zeros(PROTOCOL_SIZE, dtype=torch.bool)
    truths = [truth for _, truth in pairs]
    masks = torch.stack([blank if truth.mask is None else truth.mask for truth in truths])
    return masks, torch.stack([blank if truth.ignore is None else truth.ignore for truth in truths])


def _mask_scores(scores: Tensor, levels: Tensor, pairs: Sequence[tuple[Sample, Truth]]) -> Arrays:
    masks, ignore = (part.to(scores.device) for part in _stacked(pairs))
    ious = mask_ious(levels, masks, ignore)
    bins = torch.bucketize(scores, BIN_EDGES.to(scores.device), right=True) - 1
    row = torch.arange(len(pairs), device=scores.device).view(-1, 1, 1)
    known = torch.tensor([truth.mask is not None for _, truth in pairs], device=scores.device).view(-1, 1, 1)
    keys = ((2 * row + masks) * BINS + bins)[(masks | ~ignore) & known]
    found = torch.bincount(keys, minlength=len(pairs) * 2 * BINS).view(-1, 2, BINS).cpu().numpy().astype(np.uint16)
    return {"mask_iou": ious.float().cpu().numpy(), "on_objects": found[:, 1], "elsewhere": found[:, 0]}
