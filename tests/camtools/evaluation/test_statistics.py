"""The paired bootstrap against a plain loop, and its arithmetic by hand."""

import numpy as np
import pytest
import torch

import camtools
from camtools.errors import InputError
from camtools.evaluation.bootstrap import image_weights, interval
from camtools.evaluation.results import LEVEL_OF
from camtools.evaluation.rows import Ranked, Rows
from camtools.evaluation.statistics import Measured, threshold_of
from camtools.metrics import average_precision


def test_weights_are_draws_with_replacement():
    weights = image_weights(7, 20, seed=3)
    assert weights.shape == (20, 7) and weights.dtype == np.uint8
    assert (weights.sum(1) == 7).all()
    generator = np.random.default_rng(3)
    for row in weights:
        drawn = generator.integers(0, 7, 7)
        assert row.tolist() == [int((drawn == image).sum()) for image in range(7)]
    np.testing.assert_array_equal(weights, image_weights(7, 20, seed=3))
    assert (weights != image_weights(7, 20, seed=4)).any()


def test_interval_is_the_percentiles():
    low, high = interval(np.arange(101.0))
    assert (low, high) == (2.5, 97.5)
    assert interval(np.array([np.nan, 1.0])) == (1.0, 1.0)
    assert interval(np.zeros(0)) == (None, None)


@pytest.mark.parametrize(("name", "value"), [("bootstrap", -1), ("bootstrap", 1.5), ("seed", "x"), ("seed", True)])
def test_refuses_other_numbers(name, value):
    with pytest.raises(InputError, match=f"{name}={value!r}: expected a whole number of at least 0"):
        image_weights(3, *({"bootstrap": (value, 0), "seed": (1, value)}[name]))


def test_the_deltas_of_an_evaluation_are_those_of_a_plain_loop(model, images, options):
    result = camtools.evaluate(model, f"boxfolder:{images}", "cam;NWC,PaS(90)", **{**options, "bootstrap": 40})
    rows = result.rows
    generator = np.random.default_rng(0)
    deltas = {"MaxBoxAcc": [], "MaxBoxAccV2": [], "Top-1 Loc@best": [], "GT-known@own": []}
    for _ in range(40):
        drawn = generator.integers(0, len(rows), len(rows))
        found = {name: [] for name in deltas}
        for p in range(2):
            v1, v2 = rows.v1[p, drawn].astype(float), rows.v2[p, drawn].astype(float)
            curve = 100 * (v1[:, LEVEL_OF] >= 0.5).mean(0)
            found["MaxBoxAcc"].append(curve.max())
            by_iou = [100 * (v2[:, LEVEL_OF] >= np.float32(iou)).mean(0).max() for iou in (0.3, 0.5, 0.7)]
            found["MaxBoxAccV2"].append(np.mean(by_iou))
            right = (rows.rank[drawn] < 1)[:, None] & (v1[:, LEVEL_OF] >= 0.5)
            found["Top-1 Loc@best"].append(100 * right.mean(0)[curve.argmax()])
            found["GT-known@own"].append(100 * (rows.own_iou[p, drawn] >= 0.5).mean())
        for name, (base, other) in found.items():
            deltas[name].append(other - base)
    for name, expected in deltas.items():
        value = result.metrics["NWC,PaS(90)"][name]
        assert (value.low, value.high) == pytest.approx(tuple(np.percentile(expected, (2.5, 97.5)))), name
        assert value.delta == pytest.approx(value.value - result.metrics["cam"][name].value)
    assert any(len(set(expected)) > 1 for expected in deltas.values())
    assert result.metrics["cam"]["MaxBoxAcc"].delta is None


def test_no_replicates_no_interval(model, images, options):
    result = camtools.evaluate(model, f"boxfolder:{images}", "cam,rcam", **{**options, "bootstrap": 0})
    value = result.metrics["rcam"]["MaxBoxAcc"]
    assert value.delta is not None and (value.low, value.high) == (None, None)


def rows_of(index, **columns):
    """Rows of one pipeline with a true box each; IoU 0 unless given."""
    count = len(index)
    zeros = np.zeros((1, count, 256), dtype=np.float32)
    given = {"v1": zeros, "v2": zeros, "pointing": np.ones((1, count), dtype=np.float32)} | columns
    return Rows(
        index=np.array(index),
        ids=[str(i) for i in index],
        labels=np.zeros(count, dtype=np.int64),
        names=["a"] * count,
        sizes=np.full((count, 2), 8),
        truth=[np.array([[0, 0, 4, 4]], dtype=np.float32)] * count,
        **given,
    )


def test_best_level_by_hand():
    v1 = np.zeros((1, 3, 256), dtype=np.float32)
    v1[0, :, :3] = [[1, 0, 1], [0, 1, 1], [0, 1, 0]]
    v1[0, 0, 2] = 0.4
    rows = rows_of([7, 9, 9], v1=v1)  # two rows are of the second image
    statistic = Measured(("cam",), rows, {}).statistic("MaxBoxAcc", "cam")
    found = statistic(np.array([[1, 1], [2, 0], [0, 0]]))
    assert found.value[:2].tolist() == pytest.approx([200 / 3, 100])
    assert found.value[2].isnan()
    assert found.levels[:2].tolist() == [[1], [0]]  # the first of equals
    assert float(statistic(np.array([[1, 1]]), torch.tensor([0])).value) == pytest.approx(100 / 3)


def test_thresholds_are_the_smallest_that_read_a_level():
    assert [threshold_of(level) for level in (0, 1, 51, 254)] == [0.0, 0.004, 0.2, 0.997]
    assert all(int(threshold_of(level) * 255) == level for level in range(255))


def test_mean_average_precision_with_weights_is_that_of_repeated_images():
    generator = np.random.default_rng(0)
    image = np.sort(generator.integers(0, 6, 40))
    ranked = Ranked(
        image=image,
        label=generator.integers(0, 2, 40),
        score=generator.random(40).astype(np.float32),
        correct=generator.random(40) < 0.4,
        true_image=np.repeat(np.arange(6), 6),
        true_label=np.tile([0, 0, 0, 1, 1, 1], 6),
    )
    measured = Measured(("cam",), rows_of(range(6)), {"cam": {"boxes": ranked}})
    statistic = measured.statistic("LocalizationMAP", "cam")
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 0]])
    for row, value in zip(weights, statistic(weights).value.tolist(), strict=True):
        precisions = []
        for label in (0, 1):
            chosen = np.flatnonzero(ranked.label == label)
            chosen = np.repeat(chosen, row[image[chosen]])
            scores, correct = torch.from_numpy(ranked.score[chosen]), torch.from_numpy(ranked.correct[chosen])
            precisions.append(float(average_precision(scores, correct, int(3 * row.sum()))))
        assert value == pytest.approx(np.mean(precisions))


def test_pooled_pixels_by_hand():
    on, off = np.zeros((2, 1001), dtype=np.uint16), np.zeros((2, 1001), dtype=np.uint16)
    on[0, 1000], off[0, 500], on[0, 0] = 3, 2, 1  # precision 1 at recall 3/4, 4/6 at recall 1
    on[1, 10] = 5
    measured = Measured(("cam",), rows_of([0, 1], on_objects=on[None], elsewhere=off[None]), {})
    found = measured.statistic("PxAP", "cam")(np.array([[1, 0], [0, 2], [0, 0]]))
    assert found.value[:2].tolist() == pytest.approx([100 * (3 / 4 + 4 / 6 / 4), 100])
    assert found.value[2].isnan()
