"""Metrics of score maps against masks: PxAP, the pixel average precision, and Peak IoU, at the best threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from camtools.errors import InputError
from camtools.metrics.arguments import each, numbers
from camtools.metrics.base import SumMetric, best_level, percent, weighted_sum
from camtools.metrics.scoremap import BIN_EDGES, PROTOCOL_SIZE, THRESHOLDS, normalise, scoremaps

Masks = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]]
Ignore = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any] | None] | None

_LEVELS = 256


class PixelCurve(NamedTuple):
    """Precision and recall of pixels at every threshold, each (1001,) float64; precision and recall may be (R, 1001).

    Attributes:
        precision: Share of the kept pixels that lie on objects, in [0, 1]; NaN where nothing is kept.
        recall: Share of the objects' pixels that are kept, in [0, 1]; NaN where there are none.
        thresholds: 0, 0.001 ... 1; a pixel is kept when its normalised score is at or above.
    """

    precision: Tensor
    recall: Tensor
    thresholds: Tensor


class IoUCurve(NamedTuple):
    """Mean IoU at every threshold, each (1000,) float64.

    Attributes:
        iou: Mean over the images, per cent.
        thresholds: 0, 0.001 ... 0.999 of the map's maximum.
    """

    iou: Tensor
    thresholds: Tensor


class PxAP(SumMetric):
    """Pixel average precision: the area under the precision-recall curve of all pixels of a data set, per cent.

    Maps are resized bicubically and min-max normalised as for the box metrics, masks are resized to the nearest pixel.
    The scores of all images are pooled in 1,001 bins, [0, 0.001) ... [0.999, 1) and the value 1; pixels to ignore are
    left out unless they lie on the object. AP = sum over the bins, from the top, of precision * step in recall. That
    equals scikit-learn's `average_precision_score` of the binned scores.

    Source: Choe et al., CVPR 2020, section 3.3, and `MaskEvaluator` of the released code (wsolevaluation).

    Args:
        size: (height, width) at which maps and masks are compared; None for the maps' own.
        **kwargs: Those of every `torchmetrics.Metric`.
    """

    on_objects: Tensor
    """(1001,) int64, how many pixels on objects have a score in each bin."""
    elsewhere: Tensor
    """(1001,) int64, the same for pixels of the background."""

    def __init__(self, size: tuple[int, int] | None = PROTOCOL_SIZE, **kwargs: Any) -> None:
        sums = {name: torch.zeros(len(BIN_EDGES), dtype=torch.int64) for name in ("on_objects", "elsewhere")}
        super().__init__(sums, size, **kwargs)

    def update(self, maps: Tensor, masks: Masks, ignore: Ignore = None) -> None:
        """Add a batch.

        Args:
            maps: (B, H, W) real, one score map per image; a map with a NaN, or of one value only, counts as zeros.
            masks: (B, h, w) bool, True on the objects' pixels, or a list of B masks of (h, w), the images' own sizes.
            ignore: The same for the pixels to leave out; an entry of a list may be None.

        Raises:
            InputError: Something is of another shape or type, or there are not as many masks as maps.
        """
        scores = normalise(maps, self.size)
        objects, counted = truth_masks(masks, ignore, len(scores), (scores.shape[1], scores.shape[2]), scores.device)
        on_objects, elsewhere = pixel_bins(scores, objects, counted)
        self.add(on_objects=on_objects.sum(0), elsewhere=elsewhere.sum(0))

    def compute(self) -> Tensor:
        """Return PxAP in per cent, () float64; NaN before any object's pixel was seen."""
        return pixel_area(self.on_objects[None], self.elsewhere[None])[0]

    def curve(self) -> PixelCurve:
        """Return precision and recall at every threshold, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return pixel_curve(self.on_objects, self.elsewhere)


class PeakIoU(SumMetric):
    """Peak IoU: the mean over the images of the IoU of mask and truth, at the threshold best for the data set.

    A map has at most 256 levels, floor(255 s) of its normalised scores s, as in the box metrics; the mask at threshold
    tau keeps what is above int(tau * its largest level). One histogram per image therefore gives the IoU at all 1,000
    thresholds. Pixels to ignore are left out unless they lie on the object. An image without an object's pixel has no
    IoU and is left out.

    Source: Peak IoU and its threshold, Zhang et al. 2020 (self-enhancement maps), track 3 of the LID challenge 2020.

    Args:
        size: (height, width) at which maps and masks are compared; None for the maps' own.
        **kwargs: Those of every `torchmetrics.Metric`.
    """

    iou_sum: Tensor
    """(256,) float64, sum of the images' IoU for the mask above each level."""
    images: Tensor
    """() int64, how many images had an IoU."""

    def __init__(self, size: tuple[int, int] | None = PROTOCOL_SIZE, **kwargs: Any) -> None:
        sums = {"iou_sum": torch.zeros(_LEVELS, dtype=torch.float64), "images": torch.zeros((), dtype=torch.int64)}
        super().__init__(sums, size, **kwargs)

    def update(self, maps: Tensor, masks: Masks, ignore: Ignore = None) -> None:
        """Add a batch; the arguments and errors are those of `PxAP.update`."""
        levels = scoremaps(maps, self.size)
        objects, counted = truth_masks(masks, ignore, len(levels), (levels.shape[1], levels.shape[2]), levels.device)
        ious = mask_ious(levels, objects, ~counted)
        defined = ~ious[:, 0].isnan()
        self.add(iou_sum=ious[defined].sum(0), images=defined.sum())

    def compute(self) -> Tensor:
        """Return Peak IoU in per cent, () float64; NaN before any image with an object was seen."""
        return best_level(self.iou_sum[None, None], None, self.images[None]).value[0]

    @property
    def best_threshold(self) -> Tensor:
        """The smallest threshold with the largest mean IoU, () float64 in [0, 0.999], over all processes."""
        iou, thresholds = self.curve()
        return torch.where(iou[0].isnan(), torch.nan, thresholds[iou.argmax()])

    def curve(self) -> IoUCurve:
        """Return the mean IoU at every threshold, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            thresholds = THRESHOLDS.to(self.device)
            return IoUCurve(100 * self.iou_sum[(thresholds * (_LEVELS - 1)).long()] / self.images, thresholds)


def pixel_bins(scores: Tensor, objects: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Count each image's pixels in PxAP's bins of scores.

    Args:
        scores: (B, H, W) float64 in [0, 1], from `normalise`.
        objects: (B, H, W) bool, True on the objects' pixels.
        counted: (B, H, W) bool, the pixels that count, see `truth_masks`.

    Returns:
        The pixels on objects and elsewhere, both (B, 1001) int64.
    """
    bins = torch.bucketize(scores, BIN_EDGES.to(scores.device), right=True) - 1
    image = torch.arange(len(scores), device=scores.device).view(-1, 1, 1)
    keys = ((2 * image + objects) * len(BIN_EDGES) + bins)[counted]
    counts = torch.bincount(keys, minlength=2 * len(scores) * len(BIN_EDGES)).view(-1, 2, len(BIN_EDGES))
    return counts[:, 1], counts[:, 0]


def pixel_curve(on_objects: Tensor, elsewhere: Tensor) -> PixelCurve:
    """Return precision and recall of pixels that were counted in bins, both (..., 1001)."""
    hits, misses = (part.flip(-1).cumsum(-1).flip(-1).double() for part in (on_objects, elsewhere))
    return PixelCurve(hits / (hits + misses), hits / hits[..., :1], BIN_EDGES.to(hits.device))


def pixel_area(on_objects: Tensor, elsewhere: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return PxAP of pixels that were counted in bins.

    Args:
        on_objects: Each image's pixels on objects, (N, 1001).
        elsewhere: Each image's other pixels.
        weights: How often each image counts, (R, N); None for each once.

    Returns:
        (R,) float64 per cent; NaN without a pixel on an object.
    """
    counts = (weighted_sum(part, weights) for part in (on_objects, elsewhere))
    hits, misses = (part.flip(-1).cumsum(-1).double() for part in counts)
    kept = hits + misses
    precision = torch.where(kept > 0, hits / kept, 0.0)
    steps = hits.diff(dim=-1, prepend=hits.new_zeros(len(hits), 1))
    return percent((precision * steps).sum(-1), hits[:, -1])


def pixel_average_precision(maps: Tensor | NDArray[Any], masks: Masks, ignore: Ignore = None, **options: Any) -> Tensor:
    """Return the PxAP of a set of score maps in per cent, see `PxAP` (arguments: its `update`, then its own)."""
    metric = PxAP(**options)
    metric.update(numbers("maps", maps), masks, ignore)
    return metric.compute()


def peak_iou(maps: Tensor | NDArray[Any], masks: Masks, ignore: Ignore = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the Peak IoU of a set of score maps in per cent, and its threshold, see `PeakIoU`."""
    metric = PeakIoU(**options)
    metric.update(numbers("maps", maps), masks, ignore)
    return metric.compute(), metric.best_threshold


def mask_ious(levels: Tensor, masks: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the IoU of every image's truth with the mask above every level.

    Args:
        levels: (B, H, W) integer in [0, 255], as from `scoremaps`.
        masks: (B, H, W) bool, True on the objects' pixels.
        ignore: (B, H, W) bool, pixels to leave out unless they lie on an object.

    Returns:
        (B, 256) float64 in [0, 1]: at [:, t] the IoU of {levels > t}; NaN for an image without an object's pixel.

    Raises:
        InputError: The shapes or types differ from these, or a level is outside [0, 255].
    """
    levels, masks = numbers("levels", levels), numbers("masks", masks)
    ignore = None if ignore is None else numbers("ignore", ignore)
    if levels.dim() != 3 or levels.is_floating_point() or levels.dtype == torch.bool:
        raise InputError(
            f"levels: expected integers of shape (B, H, W), got {tuple(levels.shape)} {levels.dtype}. "
            "Quantise score maps first: scoremaps(maps)."
        )
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) < _LEVELS:
        raise InputError(f"levels: expected values in [0, 255], got {int(levels.min())} to {int(levels.max())}.")
    for name, given in (("masks", masks), ("ignore", ignore)):
        if given is not None and (given.shape != levels.shape or given.dtype != torch.bool):
            raise InputError(
                f"{name}: expected bool of shape {tuple(levels.shape)} as the levels, got {tuple(given.shape)} "
                f"{given.dtype}. truth_masks() resizes masks."
            )
    count = len(levels)
    image = torch.arange(count, device=levels.device).view(-1, 1, 1)
    keys = (2 * image + masks) * _LEVELS + levels
    keys = keys.flatten() if ignore is None else keys[masks | ~ignore]
    pixels = torch.bincount(keys, minlength=count * 2 * _LEVELS).view(count, 2, _LEVELS)
    total = pixels.sum(-1, keepdim=True)
    above = (total - pixels.cumsum(-1)).double()
    ious = above[:, 1] / (total[:, 1] + above[:, 0])
    return torch.where(total[:, 1] == 0, torch.nan, ious)


def truth_masks(
    masks: Masks, ignore: Ignore, count: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Bring masks to one size, and say which pixels count.

    The nearest pixel is OpenCV's `INTER_NEAREST`: new pixel i reads old pixel floor(i * old / new).

    Args:
        masks: (B, h, w) bool, or a list of B masks of (h, w), any sizes.
        ignore: The same, True on pixels to leave out; None for none, as may be an entry of a list.
        count: B.
        size: (height, width) wanted.
        device: Where the results go.

    Returns:
        The masks, (B, height, width) bool, and the pixels that count: those on the object or not to be ignored.

    Raises:
        InputError: There are not B of them, one is not (h, w) bool, or a mask's ignore region is of another size.
    """
    objects = _stack("masks", masks, count, size, device)
    if ignore is None:
        return objects, torch.ones_like(objects)
    return objects, objects | ~_stack("ignore", ignore, count, size, device)


def _stack(name: str, given: Any, count: int, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """Check masks and resize them to (count, *size)."""
    each(name, given, count)
    if not isinstance(given, list | tuple):
        batch = numbers(name, given)
        if batch.dim() != 3:
            raise InputError(f"{name}: expected (B, h, w), got {tuple(batch.shape)}. Join the objects: masks.any(1).")
        return _nearest(_checked(name, batch), size, device)
    blank = torch.zeros(size, dtype=torch.bool)
    parts = [
        blank if part is None and name == "ignore" else numbers(f"{name}[{k}]", part) for k, part in enumerate(given)
    ]
    resized = [_nearest(_checked(f"{name}[{k}]", part, 2), size, device) for k, part in enumerate(parts)]
    return torch.stack(resized) if resized else torch.zeros((0, *size), dtype=torch.bool, device=device)


def _checked(name: str, mask: Tensor, dims: int = 3) -> Tensor:
    """Return a mask, checked."""
    if mask.dim() != dims or mask.dtype != torch.bool or 0 in mask.shape[-2:]:
        raise InputError(
            f"{name}: expected a bool mask with at least one pixel and {dims} dimensions, got {tuple(mask.shape)} "
            f"{mask.dtype}. Compare values first: mask > 0."
        )
    return mask


def _nearest(masks: Tensor, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """Resize (..., h, w) as OpenCV's INTER_NEAREST does."""
    rows, columns = (
        (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).long().clamp(max=old - 1).to(masks.device)
        for old, new in zip(masks.shape[-2:], size, strict=True)
    )
    return masks.index_select(-2, rows).index_select(-1, columns).to(device)
