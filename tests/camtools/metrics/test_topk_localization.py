"""Top-k and GT-known localisation: worked out by hand, and held against MaxBoxAcc."""

import pytest
import torch

from camtools.errors import InputError
from camtools.metrics import MaxBoxAcc, TopKLocalization, class_ranks, topk_localization


def maps_and_truth() -> tuple[torch.Tensor, list[torch.Tensor], list[tuple[int, int]]]:
    """Three maps of a block 2 ... 5 (box 2, 2, 6, 6); the third's truth lies elsewhere. Below .5 a larger block."""
    maps = torch.zeros(3, 10, 10)
    maps[:, 1:9, 1:9], maps[:, 2:6, 2:6] = 0.5, 1.0
    right, wrong = torch.tensor([[2.0, 2.0, 6.0, 6.0]]), torch.tensor([[8.0, 8.0, 10.0, 10.0]])
    return maps, [right, right, wrong], [(10, 10)] * 3


LOGITS = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])


def values(found: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: round(value.item(), 6) for name, value in found.items()}


def test_by_hand():
    maps, boxes, sizes = maps_and_truth()
    metric = TopKLocalization(threshold=0.6, top=(1, 2), size=None)
    metric.update(maps, boxes, sizes, LOGITS, [0, 1, 0])
    # boxes: right, right, wrong; classes: first, second, first
    assert values(metric.compute()) == {"gt_known": 66.666667, "top1": 33.333333, "top2": 66.666667}
    assert metric.best_threshold.item() == 0.6
    # at .2 the box is 1, 1, 9, 9: IoU 25/81
    assert topk_localization(maps, boxes, sizes, LOGITS, [0, 1, 0], threshold=0.2, size=None)["gt_known"] == 0


def test_best_is_the_threshold_of_maxboxacc(real_maps):
    metric, known = TopKLocalization(), MaxBoxAcc()
    metric.update(**real_maps)
    known.update(real_maps["maps"], real_maps["boxes"], real_maps["sizes"])
    found = metric.compute()
    assert found["gt_known"].equal(known.compute())
    assert metric.best_threshold.equal(known.best_threshold)
    fixed = topk_localization(**real_maps, threshold=known.best_threshold.item())
    assert values(fixed) == values(found)
    assert found["gt_known"] >= found["top5"] >= found["top1"] > 0


def test_boxes_of_the_callers_own():
    boxes = [torch.tensor([[10.0, 10.0, 30.0, 30.0]])] * 4
    predicted = torch.tensor([[10.0, 10, 30, 20], [10, 10, 30, 19], [torch.nan] * 4, [10, 10, 30, 30]])
    metric = TopKLocalization(top=(1,))
    metric.update_boxes(predicted, boxes, [(40, 40)] * 4, torch.eye(4), [0, 1, 2, 0])
    # IoU 1/2, 9/20, no box, 1; the last one's class is wrong
    assert values(metric.compute()) == {"gt_known": 50.0, "top1": 25.0}
    several = [torch.tensor([[0.0, 0.0, 5.0, 5.0], [10.0, 10.0, 30.0, 30.0], [torch.nan] * 4])]
    metric.reset()
    metric.update_boxes(predicted[3:].int(), several, [(40, 40)], torch.eye(4)[:1], torch.tensor([0]))
    assert metric.compute()["top1"] == 100


def test_two_halves_merged_are_the_whole():
    maps, boxes, sizes = maps_and_truth()
    whole, first, second = (TopKLocalization(size=None) for _ in range(3))
    whole.update(maps, boxes, sizes, LOGITS, [0, 1, 0])
    first.update(maps[:1], boxes[:1], sizes[:1], LOGITS[:1], [0])
    second.update(maps[1:], boxes[1:], sizes[1:], LOGITS[1:], [1, 0])
    first.merge_state(second)
    assert values(first.compute()) == values(whole.compute())
    assert first.best_threshold.equal(whole.best_threshold)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan():
    assert all(value.isnan() for value in TopKLocalization().compute().values())
    assert TopKLocalization().best_threshold.isnan()


def test_ranks_count_the_classes_before_and_equal_ones_by_index():
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    assert class_ranks(logits, [2, 1, 1]).tolist() == [1, 1, 0]
    assert class_ranks(logits, torch.tensor([1, 0, 0])).tolist() == [2, 0, 2]


BOXES = [torch.tensor([[1.0, 1.0, 3.0, 3.0]])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKLocalization(1.0), r"threshold=1.0\): threshold must be a number, 0 <= threshold < 1"),
        (lambda: TopKLocalization("otsu"), r"threshold='otsu'\)"),
        (lambda: TopKLocalization(iou=0), r"iou=0\): iou must be a number, 0 < iou <= 1"),
        (lambda: TopKLocalization(top=(0,)), r"top=0\): top must be a whole number of at least 1"),
        (lambda: class_ranks(torch.rand(3), [0]), r"logits: expected shape \(B, K\), got \(3,\)"),
        (lambda: class_ranks(None, [0]), r"logits: .* got None"),
        (lambda: class_ranks(torch.rand(2, 3), [0]), r"labels: expected 2 class indices, .*, got \(1,\)"),
        (lambda: class_ranks(torch.rand(1, 3), [0.5]), r"labels: expected 1 class indices, .* torch.float32 with 0.5"),
        (lambda: class_ranks(torch.rand(1, 3), [3]), r"labels: expected classes in \[0, 2\] for 3 logits, got 3 to 3"),
        (lambda: class_ranks(torch.tensor([[torch.nan, 1]]), [1]), r"logits\[0\] has a NaN, which has no rank"),
        (
            lambda: TopKLocalization().update_boxes(torch.rand(4), BOXES, [(4, 4)], torch.rand(1, 3), [0]),
            r"predicted: expected \(N, 4\), .*got \(4,\)",
        ),
        (
            lambda: TopKLocalization().update_boxes(BOXES[0], BOXES, [(4, 4)], torch.rand(2, 3), [0, 1]),
            r"ranks: expected 1 class indices, .* got \(2,\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
