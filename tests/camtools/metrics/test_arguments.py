"""One rule for what metrics are given: every class and function names the argument that cannot be."""

import math

import numpy as np
import pytest
import torch

from camtools import metrics
from camtools.errors import InputError
from camtools.metrics.arguments import box_rows, class_labels, image_sizes, map_size, numbers

MAPS, MASKS = torch.rand(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
PLACED = {"maps": MAPS, "boxes": [torch.tensor([[1.0, 1.0, 3.0, 3.0]])], "sizes": [(8, 8)]}
LOGITS = {"logits": torch.rand(1, 3), "labels": [0]}
CLASSES = {"preds": torch.zeros(1, 2, 2).long(), "target": torch.zeros(1, 2, 2).long()}
LEVELS = torch.zeros(1, 4, 4, dtype=torch.uint8)

CALLS = {
    "MaxBoxAcc": (metrics.MaxBoxAcc().update, PLACED),
    "MaxBoxAccV2": (metrics.MaxBoxAccV2().update, PLACED),
    "max_box_acc": (metrics.max_box_acc, PLACED),
    "max_box_acc_v2": (metrics.max_box_acc_v2, PLACED),
    "TopKLocalization": (metrics.TopKLocalization().update, PLACED | LOGITS),
    "topk_localization": (metrics.topk_localization, PLACED | LOGITS),
    "PointingGame": (metrics.PointingGame().update, PLACED | {"labels": [0]}),
    "pointing_accuracy": (metrics.pointing_accuracy, PLACED | {"labels": [0]}),
    "PointingMAP": (metrics.PointingMAP().update, PLACED | {"labels": [0], "scores": [0.5]}),
    "pointing_average_precision": (metrics.pointing_average_precision, PLACED | {"labels": [0], "scores": [0.5]}),
    "PxAP": (metrics.PxAP().update, {"maps": MAPS, "masks": MASKS}),
    "pixel_average_precision": (metrics.pixel_average_precision, {"maps": MAPS, "masks": MASKS}),
    "PeakIoU": (metrics.PeakIoU().update, {"maps": MAPS, "masks": MASKS}),
    "peak_iou": (metrics.peak_iou, {"maps": MAPS, "masks": MASKS}),
    "MeanIoU": (metrics.MeanIoU(2).update, CLASSES),
    "semantic_iou": (lambda **given: metrics.semantic_iou(num_classes=2, **given), CLASSES),
    "box_ious": (metrics.box_ious, {"levels": LEVELS} | {key: PLACED[key] for key in ("boxes", "sizes")}),
    "mask_ious": (metrics.mask_ious, {"levels": LEVELS, "masks": MASKS}),
    "average_precision": (
        metrics.average_precision,
        {"scores": [0.5], "correct": torch.tensor([True]), "positives": 1},
    ),
    "class_ranks": (metrics.class_ranks, LOGITS),
    "scoremaps": (metrics.scoremaps, {"maps": MAPS}),
}
STRANGE = [None, "text", 7.5, {}, object(), [None], ["text"], [[1, 2], [3]], np.array(["a"]), torch.zeros(1, 2, 3, 4)]
STRANGE += [torch.zeros(1, 4, 4).to_sparse(), torch.zeros(1, 4, 4, device="meta"), torch.zeros(1, 4, 4) + 1j]

WORDS = {"preds": "preds|prediction", "target": "target|truth"}


@pytest.mark.parametrize("name", CALLS)
def test_what_no_metric_can_take_is_named(name):
    call, good = CALLS[name]
    call(**good)
    for key in good:
        for strange in STRANGE:
            if key == "labels" and strange is None and "ointing" in name and "verage" not in name and "MAP" not in name:
                continue  # pointing accuracy does without
            with pytest.raises(InputError, match=WORDS.get(key, key)):
                call(**good | {key: strange})


INF, NAN, LARGE = math.inf, math.nan, 10**30
BOXED = [name for name, (_, good) in CALLS.items() if "boxes" in good]


@pytest.mark.parametrize(
    "row", [[3, 1, 1, 3], [1, 3, 3, 1], [1, 1, INF, 3], [-INF, 1, 3, 3], [NAN, 1, 3, 3], [0, 0, 1, 3e9]]
)
def test_inverted_infinite_and_half_missing_boxes_are_named_by_all(row):
    for name in BOXED:
        call, good = CALLS[name]
        with pytest.raises(InputError, match=r"boxes\[0\]\[0\] is \[.*expected finite pixels, x0 <= x1 and y0 <= y1"):
            call(**good | {"boxes": [torch.tensor([row], dtype=torch.float64)]})
    image = {"boxes": [row], "labels": [0]}
    for preds, target in (([image | {"scores": [0.5]}], [image]), ([], [image]), ([image | {"scores": [0.5]}], [])):
        known = [{"boxes": [], "labels": [], "scores": []}]
        with pytest.raises(InputError, match=r"\['boxes'\]\[0\] is \[.*expected finite pixels"):
            metrics.localization_average_precision(preds or known, target or known)
    with pytest.raises(InputError, match=r"predicted\[0\] is"):
        metrics.TopKLocalization().update_boxes([row], PLACED["boxes"], [(8, 8)], **LOGITS)


def test_good_values_of_any_kind_are_the_same_numbers():
    expected = torch.tensor([[0.0, 1, 2, 3], [NAN] * 4], dtype=torch.float64)
    reversed_rows = np.array([[NAN] * 4, [0, 1, 2, 3]])[::-1]  # negative strides
    for given in (expected.tolist(), expected.float(), expected.numpy(), reversed_rows):
        assert box_rows("boxes", given).equal(expected) or box_rows("boxes", given).nan_to_num(-1).equal(
            expected.nan_to_num(-1)
        )
    assert class_labels("labels", np.array([3, 0], dtype=np.uint16), 2).tolist() == [3, 0]
    assert image_sizes(torch.tensor([[5, 4]]), 1) == image_sizes([np.array([5.0, 4])], 1) == [(5, 4)]
    assert numbers("x", 3).item() == 3 and map_size(None) is None and map_size((3, 4)) == (3, 4)


def test_sizes_beyond_memory_are_named():
    with pytest.raises(InputError, match=r"sizes\[0\] is \(100000, 100000\): expected at most .* pixels"):
        metrics.pointing_accuracy(**PLACED | {"sizes": [(100_000, 100_000)]})
    with pytest.raises(InputError, match=r"size=\(100000, 100000\): expected \(height, width\) of at most"):
        metrics.PxAP(size=(100_000, 100_000))
    with pytest.raises(InputError, match=r"sizes\[0\] is \(inf, 3\): expected \(width, height\), two"):
        metrics.max_box_acc(**PLACED | {"sizes": [(INF, 3)]})


@pytest.mark.parametrize("value", [None, "text", -1, NAN, INF, LARGE, [], np.zeros(2), torch.zeros(2)])
def test_settings_of_metrics_are_named(value):
    for make, key in (
        (metrics.MaxBoxAcc, "iou"),
        (metrics.MaxBoxAccV2, "ious"),
        (metrics.MaxBoxAcc, "interval"),
        (metrics.TopKLocalization, "threshold"),
        (metrics.TopKLocalization, "iou"),
        (metrics.LocalizationMAP, "iou_threshold"),
        (metrics.LocalizationMAP, "interpolation"),
        (metrics.LocalizationMAP, "pixel_inclusive"),
        (metrics.PointingGame, "average"),
        (metrics.PointingGame, "tolerance"),
        (metrics.MeanIoU, "num_classes"),
        (metrics.PxAP, "size"),
    ):
        if (value is None and key == "size") or (value is LARGE and key == "tolerance"):
            continue
        with pytest.raises(InputError, match=rf"{key[:3]}"):
            make(**{key: value})
    if not isinstance(value, list):
        with pytest.raises(InputError, match="top"):
            metrics.TopKLocalization(top=value)
