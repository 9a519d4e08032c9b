"""Metrics on random sets, equal to slow plain reimplementations of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import wsol_reference as wsol
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from pixel_reference import reference_ious, reference_pxap
from sklearn.metrics import average_precision_score, confusion_matrix
from voc_reference import devkit

from camtools import metrics

SEEDS = st.integers(0, 2**32 - 1)
FAMILIES = st.sampled_from(sorted(wsol.FAMILIES))
SIZES = st.one_of(st.just((16, 16)), st.tuples(st.integers(3, 20), st.integers(3, 20)))
TYPES = st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16])


@st.composite
def sets(draw: st.DrawFn) -> tuple[np.random.Generator, torch.Tensor, list[np.ndarray], list[tuple[int, int]]]:
    """Draw score maps with the true boxes of their images: what comes with them is drawn from the generator."""
    rng = np.random.default_rng(draw(SEEDS))
    (height, width), families = draw(SIZES), draw(st.lists(FAMILIES, min_size=1, max_size=3))
    maps = np.stack([wsol.FAMILIES[family](rng, height, width) for family in families])
    sizes = [(int(rng.integers(2, 60)), int(rng.integers(2, 60))) for _ in families]
    boxes = [wsol.true_boxes(rng, h, w) for w, h in sizes]
    return rng, torch.from_numpy(maps).to(draw(TYPES)), boxes, sizes


def levels_of(maps: torch.Tensor, size: tuple[int, int] | None) -> list[np.ndarray]:
    """Return maps as the protocol quantises them; `size` is (height, width)."""
    given_ = maps.double().numpy()
    return [wsol.levels_of(m if size is None else wsol.resized(m, size[::-1])) for m in given_]


@examples(2)
@given(sets(), st.one_of(st.none(), SIZES))
def test_box_metrics(drawn: Any, size: tuple[int, int] | None) -> None:
    rng, maps, boxes, sizes = drawn
    levels = levels_of(maps, size)
    truths = [
        wsol.scaled(box, image, level.shape[::-1]) for box, image, level in zip(boxes, sizes, levels, strict=True)
    ]
    found = [wsol.ious_at_levels(level, truth) for level, truth in zip(levels, truths, strict=True)]
    largest, single, several = (np.stack(part) for part in zip(*found, strict=True))
    quantised = metrics.scoremaps(maps, size)
    assert np.array_equal(quantised.numpy(), np.stack(levels))
    ious = metrics.box_ious(quantised, boxes, sizes)
    np.testing.assert_array_equal(ious.largest.numpy(), single)
    np.testing.assert_array_equal(ious.any.numpy(), several)
    np.testing.assert_array_equal(metrics.largest_ious(quantised, boxes, sizes).numpy(), single)
    np.testing.assert_array_equal(metrics.largest_boxes(quantised).numpy(), largest)

    at = (np.arange(0, 1, 0.001) * 255).astype(int)
    expected = 100 * (single[:, at] >= 0.5).mean(0)
    value, threshold = metrics.max_box_acc(maps, boxes, sizes, size=size)
    assert value.item() == pytest.approx(expected.max(), rel=1e-12)
    assert threshold.item() == np.arange(0, 1, 0.001)[expected.argmax()]
    second = [100 * (several[:, at] >= iou).mean(0).max() for iou in (0.3, 0.5, 0.7)]
    assert metrics.max_box_acc_v2(maps, boxes, sizes, size=size)[0].item() == pytest.approx(np.mean(second), rel=1e-12)

    logits, labels = rng.standard_normal((len(maps), 4)).round(1), rng.integers(0, 4, len(maps))
    ranks = [
        sorted(range(4), key=lambda k: (-row[k], k)).index(label) for row, label in zip(logits, labels, strict=True)
    ]
    assert metrics.class_ranks(torch.from_numpy(logits), labels).tolist() == ranks
    topk = metrics.topk_localization(maps, boxes, sizes, torch.from_numpy(logits), labels, top=(1, 2), size=size)
    hit = single[:, at[expected.argmax()]] >= 0.5
    assert topk["gt_known"].item() == pytest.approx(100 * hit.mean(), rel=1e-12)
    for k in (1, 2):
        assert topk[f"top{k}"].item() == pytest.approx(100 * (hit & (np.array(ranks) < k)).mean(), rel=1e-12)


@examples(2)
@given(sets(), st.booleans())
def test_pixel_metrics(drawn: Any, ignored: bool) -> None:
    rng, maps, _, _ = drawn
    masks = rng.random(maps.shape) < rng.choice([0, 0.1, 0.5, 1])
    left_out = (rng.random(maps.shape) < 0.3) & ignored
    scores, ignore = maps.double().numpy(), left_out if ignored else None
    value = metrics.pixel_average_precision(maps, masks, ignore, size=None)
    if not masks.any():
        assert value.isnan()
        return
    assert value.item() == pytest.approx(reference_pxap(scores, masks, left_out), rel=1e-12)
    binned = [np.floor(metrics.normalise(m[None], None)[0].numpy() * 1000 + 1e-9) for m in maps]
    counted = masks | ~left_out
    theirs = average_precision_score(masks[counted], np.stack(binned)[counted])
    assert value.item() == pytest.approx(100 * theirs, abs=0.5)  # bins of scores a rounding away from an edge
    objects = [index for index in range(len(maps)) if masks[index].any()]
    expected = reference_ious(scores[objects], masks[objects], left_out[objects])
    peak, threshold = metrics.peak_iou(maps, masks, ignore, size=None)
    assert peak.item() == pytest.approx(100 * expected.max(), rel=1e-9)
    assert expected[round(threshold.item() * 1000)] == pytest.approx(expected.max(), rel=1e-9)


def plain_peak(score_map: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Return x, y of the first largest value of a map at an image's size, by one interpolation per axis."""
    old_height, old_width = score_map.shape
    if np.isnan(score_map).any():
        return -1, -1
    rows, columns = (
        np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        for new, old in ((height, old_height), (width, old_width))
    )
    across = np.stack([np.interp(columns, np.arange(old_width), row) for row in score_map])
    resized = np.stack([np.interp(rows, np.arange(old_height), column) for column in across.T], 1)
    y, x = np.unravel_index((resized >= resized.max() - 1e-9 * np.ptp(resized)).argmax(), resized.shape)
    return int(x), int(y)


@examples(2)
@given(sets(), st.sampled_from([0, 2, 18, 0.5]), st.sampled_from(["area", "11-point"]))
def test_pointing(drawn: Any, tolerance: float, interpolation: Any) -> None:
    rng, maps, boxes, sizes = drawn
    labels, scores = rng.integers(0, 2, len(maps)), rng.random(len(maps)).round(1)
    difficult = [rng.random(len(box)) < 0.3 for box in boxes]
    boxes = [np.zeros((0, 4)) if rng.random() < 0.3 else box for box in boxes]
    difficult = [hard[: len(box)] for hard, box in zip(difficult, boxes, strict=True)]
    hits = []
    for m, box, (width, height) in zip(maps.double().numpy(), boxes, sizes, strict=True):
        x, y = plain_peak(m, width, height)
        inside = [
            x0 - tolerance <= x < x1 + tolerance and y0 - tolerance <= y < y1 + tolerance for x0, y0, x1, y1 in box
        ]
        hits.append(x >= 0 and any(inside))
    placed = [not hard.all() for hard in difficult]  # of no boxes, all are difficult
    value = metrics.pointing_accuracy(maps, boxes, sizes, labels, difficult, tolerance=tolerance).item()
    counted = [hit for hit, place in zip(hits, placed, strict=True) if place]
    assert value == pytest.approx(100 * np.mean(counted)) if counted else math.isnan(value)
    # The same as detections: an object is one pixel, and a pair's detection on it if it hits.
    preds, target = [], []
    for k, (hit, place) in enumerate(zip(hits, placed, strict=True)):
        kept = place or len(boxes[k]) == 0
        pixel = torch.tensor([[0.0, 0, 1, 1]])
        one = {"boxes": pixel + (0 if hit else 9), "labels": torch.tensor([labels[k]])}
        preds.append(
            one | {"scores": torch.tensor([scores[k]])}
            if kept
            else {"boxes": pixel[:0], "labels": torch.tensor([], dtype=torch.int64), "scores": torch.tensor([])}
        )
        target.append({"boxes": pixel[: int(place)], "labels": torch.tensor([labels[k]])[: int(place)]})
    target = [{**t, "difficult": torch.zeros(len(t["labels"]), dtype=torch.bool)} for t in target]
    per_class = metrics.pointing_average_precision(
        maps, boxes, sizes, labels, scores, difficult, tolerance=tolerance, interpolation=interpolation
    )[1]
    expected = {label: devkit(preds, target, label, extra=0.0, points=interpolation != "area") for label in (0, 1)}
    assert per_class == pytest.approx({label: ap for label, ap in expected.items() if ap is not None}, rel=1e-9)


@examples(2)
@given(SEEDS, st.integers(1, 5), st.booleans(), st.sampled_from(["area", "11-point"]), st.sampled_from([0.1, 0.5, 1.0]))
def test_detections(seed: int, count: int, inclusive: bool, interpolation: Any, minimum: float) -> None:
    rng = np.random.default_rng(seed)
    preds, target = [], []
    for _ in range(count):
        corner, side = rng.integers(0, 30, (rng.integers(0, 5), 2)), rng.integers(0, 12, (5, 2))
        truth = np.concatenate([corner, corner + side[: len(corner)]], 1).astype(float)
        moved = np.repeat(truth, 2, 0) + rng.integers(-2, 3, (2 * len(truth), 1))
        labels, guesses = rng.integers(0, 3, len(truth)), rng.integers(0, 3, len(moved))
        scores = torch.from_numpy(rng.random(len(moved)).round(1))
        preds.append({"boxes": torch.from_numpy(moved), "labels": torch.from_numpy(guesses), "scores": scores})
        hard = torch.from_numpy(rng.random(len(truth)) < 0.3)
        target.append({"boxes": torch.from_numpy(truth), "labels": torch.from_numpy(labels), "difficult": hard})
    mean, per_class = metrics.localization_average_precision(
        preds, target, iou_threshold=minimum, interpolation=interpolation, pixel_inclusive=inclusive
    )
    expected = {
        k: devkit(preds, target, k, minimum=minimum, extra=float(inclusive), points=interpolation != "area")
        for k in range(3)
    }
    known = {label: ap for label, ap in expected.items() if ap is not None}
    assert per_class == pytest.approx(known, rel=1e-9)
    assert mean.item() == pytest.approx(np.mean(list(known.values())), rel=1e-9) if known else mean.isnan()


@examples()
@given(SEEDS, st.integers(2, 6), st.booleans(), st.sampled_from([255, 0, None, -1]))
def test_mean_iou(seed: int, classes: int, background: bool, ignore: int | None) -> None:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (2, 7, 5))
    preds = np.where(rng.random(target.shape) < 0.5, target, rng.integers(0, classes, target.shape))
    if ignore is not None:
        target[rng.random(target.shape) < 0.2] = ignore
    value, per_class = metrics.semantic_iou(
        torch.from_numpy(preds), torch.from_numpy(target), classes, ignore_index=ignore, include_background=background
    )
    counted = target != ignore if ignore is not None else np.ones_like(target, bool)
    table = confusion_matrix(target[counted], preds[counted], labels=range(classes))
    with np.errstate(invalid="ignore"):
        ious = 100 * table.diagonal() / (table.sum(0) + table.sum(1) - table.diagonal())
    kept = {k: v for k, v in enumerate(ious.tolist()) if not math.isnan(v) and (background or k)}
    assert per_class == pytest.approx(kept, rel=1e-12)
    assert value.item() == pytest.approx(np.mean(list(kept.values()))) if kept else value.isnan()


@examples(2)
@given(SEEDS, st.integers(0, 12), st.sampled_from(["area", "11-point"]))
def test_average_precision(seed: int, count: int, interpolation: Any) -> None:
    rng = np.random.default_rng(seed)
    scores, correct = rng.permutation(100)[:count] / 100, rng.random(count) < 0.5
    missed = int(rng.integers(0, 4))
    positives = int(correct.sum()) + missed
    value = metrics.average_precision(torch.from_numpy(scores), torch.from_numpy(correct), positives, interpolation)
    if not positives:
        assert value.isnan()
        return
    order = np.argsort(-scores)
    hits = correct[order].cumsum()
    precision, recall = hits / np.arange(1, count + 1), hits / positives
    best = [max(precision[recall >= r - 1e-12], default=0.0) for r in recall]
    expected = sum(p for p, right in zip(best, correct[order], strict=True) if right) / positives
    if interpolation == "11-point":
        expected = np.mean([max(precision[hits * 10 >= k * positives], default=0.0) for k in range(11)])
    assert value.item() == pytest.approx(100 * expected, rel=1e-9, abs=1e-9)
    if count and not missed and interpolation == "area":
        assert value.item() >= 100 * average_precision_score(correct, scores) - 1e-9
