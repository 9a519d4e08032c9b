"""Mean IoU of semantic masks over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from camtools.checks import flag, whole
from camtools.errors import InputError
from camtools.metrics.arguments import each, numbers
from camtools.metrics.base import keep_apart

_MOST_CLASSES = 10_000
"""Their confusion matrix takes 800 MB."""

SemanticMasks = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]]


class MeanIoU(MulticlassConfusionMatrix):
    """Mean over classes of the IoU of semantic masks, all pixels of a data set pooled, per cent.

    IoU of a class = pixels that are of it in both, over pixels that are of it in either: from one confusion matrix,
    torchmetrics'. Classes that occur in neither truth nor prediction are left out of the mean. `torchmetrics.
    segmentation.MeanIoU` is another number: the mean over images.

    Source: Everingham et al., IJCV 2015, section 4.2.2; mIoU of track 1 of the LID challenge 2020.

    Args:
        num_classes: Classes, the background 0 included; from 2 to 10,000.
        ignore_index: Value of the truth's pixels that are left out; None for no such value.
        include_background: Whether class 0 counts in the mean. Its pixels always count as the other classes' mistakes.
        **kwargs: Those of every `torchmetrics.Metric`.

    Raises:
        InputError: A parameter is outside its range.
    """

    higher_is_better = True

    def __init__(
        self, num_classes: int, ignore_index: int | None = 255, include_background: bool = True, **kwargs: Any
    ) -> None:
        whole("num_classes", num_classes, 2, _MOST_CLASSES, owner="MeanIoU")
        if ignore_index is not None:
            whole("ignore_index", ignore_index, -(2**31), 2**31, owner="MeanIoU")
        super().__init__(num_classes, ignore_index, normalize=None, validate_args=False, **kwargs)
        self.include_background = flag("include_background", include_background, owner="MeanIoU")
        keep_apart(self, ignore_index)

    def update(self, preds: SemanticMasks, target: SemanticMasks) -> None:
        """Add a batch.

        Args:
            preds: (B, H, W) integer, the class of every pixel, in [0, num_classes); or a list of (h, w), any sizes.
            target: The same of the truth; pixels of value `ignore_index` are left out.

        Raises:
            InputError: The shapes or types differ from these, or a pixel that counts is of no class.
        """
        each("preds", preds, len(each("target", target)), "images of the truth")
        if not len(preds):
            return
        lists = isinstance(preds, list | tuple) or isinstance(target, list | tuple)
        pairs: Any = zip(preds, target, strict=True) if lists else [(preds, target)]  # batches of tensors as wholes
        parts = [(numbers("preds", pred), numbers("target", true)) for pred, true in pairs]
        for index, (pred, true) in enumerate(parts):
            if pred.shape != true.shape:
                raise InputError(
                    f"image {index}: the prediction is {tuple(pred.shape)} and the truth {tuple(true.shape)}; "
                    "resize the prediction to the truth, to the nearest pixel."
                )
            for name, given in (("prediction", pred), ("truth", true)):
                if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
                    raise InputError(
                        f"image {index}: expected integers, the class of every pixel, and the {name} is "
                        f"{given.dtype}. From scores: scores.argmax(1)."
                    )
        flat, truth = (
            torch.cat([part.flatten().to(self.device, torch.int64) for part in side])
            for side in zip(*parts, strict=True)
        )
        if self.ignore_index is not None:
            counted = truth != self.ignore_index
            flat, truth = flat[counted], truth[counted]
        for name, given in (("preds", flat), ("target", truth)):
            wrong = given[(given < 0) | (given >= self.num_classes)]
            if len(wrong):
                raise InputError(
                    f"{name}: value {int(wrong[0])} is no class: expected 0 to {self.num_classes - 1}, or in the truth "
                    f"ignore_index={self.ignore_index}. Set num_classes or ignore_index."
                )
        super().update(flat, truth)

    def compute(self) -> Tensor:
        """Return the mean IoU in per cent, () float64; NaN before any pixel of a class in the mean was seen."""
        return self._ious().nanmean()

    def per_class(self) -> dict[int, float]:
        """Return the IoU of every class that occurs in per cent, over all processes (call it in all of them)."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            ious = self._ious().tolist()
        return {label: iou for label, iou in enumerate(ious) if iou == iou}

    def _ious(self) -> Tensor:
        """Return the classes' IoU, (num_classes,) per cent; NaN for those not in the mean."""
        shared = self.confmat.diagonal().double()
        ious = 100 * shared / (self.confmat.sum(0) + self.confmat.sum(1) - shared)
        if not self.include_background:
            ious[0] = torch.nan
        return ious


def semantic_iou(
    preds: SemanticMasks, target: SemanticMasks, num_classes: int, **options: Any
) -> tuple[Tensor, dict[int, float]]:
    """Return the mean IoU of a set of semantic masks and each class's IoU in per cent, see `MeanIoU`."""
    metric = MeanIoU(num_classes, **options)
    metric.update(preds, target)
    return metric.compute(), metric.per_class()
