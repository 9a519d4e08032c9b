"""Metrics under weights are the metrics of images repeated so often: what the bootstrap relies on."""

import pytest
import torch

from camtools.metrics.average_precision import average_precision, class_precisions
from camtools.metrics.base import best_level, percent, weighted_mean, weighted_sum
from camtools.metrics.box_accuracy import box_hits
from camtools.metrics.pixel import mask_ious, pixel_area, pixel_bins
from camtools.metrics.topk_localization import topk_hits

WEIGHTS = torch.tensor([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 0], [0, 0, 0, 0, 0, 6]], dtype=torch.uint8)


def repeated(weights):
    """Positions of the six images, each as often as it counts."""
    return torch.arange(6).repeat_interleave(weights.long())


def test_a_weighted_sum_is_that_of_repeated_rows():
    hits, numbers = torch.rand(6, 4) < 0.5, torch.rand(6, 4, dtype=torch.float64)
    for row, of_hits, of_numbers in zip(
        WEIGHTS, weighted_sum(hits, WEIGHTS), weighted_sum(numbers, WEIGHTS), strict=True
    ):
        assert of_hits.tolist() == hits[repeated(row)].sum(0).tolist()
        assert of_numbers.tolist() == pytest.approx(numbers[repeated(row)].sum(0).tolist())
    assert weighted_sum(hits).equal(hits.sum(0)[None])
    assert weighted_mean(numbers[:, 0]).tolist() == pytest.approx([100 * numbers[:, 0].mean().item()])
    assert percent(torch.tensor([1, 0]), torch.tensor([4, 0])).nan_to_num(-1).tolist() == [25.0, -1.0]


def test_box_accuracy_and_top_k():
    ious, ranks = torch.rand(6, 255), torch.tensor([0, 1, 0, 4, 7, 0])
    total = WEIGHTS.sum(1)
    hits = topk_hits(ious, ranks, (1, 5), 0.5, WEIGHTS)
    found = best_level(box_hits(ious, (0.3, 0.5), WEIGHTS), None, total)
    top = best_level(hits[:, 1:2], hits[:, :1], total)
    for number, row in enumerate(WEIGHTS):
        own = repeated(row)
        alone = best_level(box_hits(ious[own], (0.3, 0.5)), None, torch.tensor([6]))
        assert found.value[number] == alone.value[0] and found.levels[number].equal(alone.levels[0])
        known = (ious[own] >= 0.5).sum(0)
        level = int(known.argmax())
        right = (ious[own][:, level] >= 0.5) & (ranks[own] < 1)
        assert top.value[number] == pytest.approx(100 * right.double().mean().item())
        assert top.levels[number].tolist() == [level]
    at = best_level(box_hits(ious, (0.5,), WEIGHTS), None, total, levels=torch.tensor([3]))
    assert at.value[0] == pytest.approx(100 * (ious[:, 3] >= 0.5).double().mean().item())


def test_pixels():
    scores, masks = torch.rand(6, 5, 7, dtype=torch.float64), torch.rand(6, 5, 7) < 0.4
    on_objects, elsewhere = (part.double() for part in pixel_bins(scores, masks, torch.ones_like(masks)))
    assert on_objects.sum() + elsewhere.sum() == scores.numel()
    areas = pixel_area(on_objects, elsewhere, WEIGHTS)
    ious = mask_ious((scores * 255).to(torch.uint8), masks)
    peaks = best_level(weighted_sum(ious, WEIGHTS)[:, None], None, WEIGHTS.sum(1))
    for number, row in enumerate(WEIGHTS):
        own = repeated(row)
        assert areas[number] == pytest.approx(pixel_area(on_objects[own], elsewhere[own]).item())
        assert peaks.value[number] == pytest.approx(100 * ious[own].mean(0).max().item())
    assert pixel_area(on_objects[:0], elsewhere[:0]).isnan().all()


@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_average_precision(interpolation):
    image = torch.randint(6, (40,)).sort().values
    scores, labels, correct = torch.rand(40), torch.randint(2, (40,)), torch.rand(40) < 0.4
    objects, true_labels = torch.arange(6).repeat_interleave(6), torch.tensor([0, 0, 0, 1, 1, 1]).repeat(6)
    counts = WEIGHTS[:, image], WEIGHTS[:, objects]
    found = class_precisions(scores, labels, correct, true_labels, interpolation, counts)
    assert list(found) == [0, 1]
    for number, row in enumerate(WEIGHTS):
        chosen = torch.arange(40).repeat_interleave(row[image].long())
        for label, value in found.items():
            own = chosen[labels[chosen] == label]
            expected = average_precision(scores[own], correct[own], 18, interpolation)
            assert value[number].item() == pytest.approx(expected.item())
    none = average_precision(scores, correct, torch.tensor([0, 5]), interpolation, torch.ones(2, 40, dtype=torch.int64))
    assert none.isnan().tolist() == [True, False]
