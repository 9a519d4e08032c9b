"""Metrics of maps, boxes and points: torchmetrics classes, and the same as plain functions."""

from camtools.metrics.average_precision import RankedCurve, average_precision
from camtools.metrics.box_accuracy import BoxCurve, MaxBoxAcc, MaxBoxAccV2, max_box_acc, max_box_acc_v2
from camtools.metrics.box_ious import BoxIoUs, box_ious, largest_boxes, largest_ious
from camtools.metrics.faithfulness import (
    FaithfulnessCurve,
    average_drop,
    average_increase,
    deletion,
    insertion,
    masked_scores,
    road,
)
from camtools.metrics.localization_map import LocalizationMAP, localization_average_precision
from camtools.metrics.mean_iou import MeanIoU, semantic_iou
from camtools.metrics.pixel import IoUCurve, PeakIoU, PixelCurve, PxAP, mask_ious, peak_iou, pixel_average_precision
from camtools.metrics.pointing import PointingGame, PointingMAP, pointing_accuracy, pointing_average_precision
from camtools.metrics.scoremap import normalise, resize_cubic, scoremaps
from camtools.metrics.topk_localization import TopKLocalization, class_ranks, topk_localization

__all__ = [
    "BoxCurve",
    "BoxIoUs",
    "FaithfulnessCurve",
    "IoUCurve",
    "LocalizationMAP",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "MeanIoU",
    "PeakIoU",
    "PixelCurve",
    "PointingGame",
    "PointingMAP",
    "PxAP",
    "RankedCurve",
    "TopKLocalization",
    "average_drop",
    "average_increase",
    "average_precision",
    "box_ious",
    "class_ranks",
    "deletion",
    "insertion",
    "largest_boxes",
    "largest_ious",
    "localization_average_precision",
    "mask_ious",
    "masked_scores",
    "max_box_acc",
    "max_box_acc_v2",
    "normalise",
    "peak_iou",
    "pixel_average_precision",
    "pointing_accuracy",
    "pointing_average_precision",
    "resize_cubic",
    "road",
    "scoremaps",
    "semantic_iou",
    "topk_localization",
]
