"""Masks split where their maps have separate peaks: by hand, against a brute-force oracle, alone and in batches."""

import re

import numpy as np
import pytest
import torch

from camtools import Explainer, Preprocess
from camtools.errors import PipelineError
from camtools.pipeline import Pipeline
from camtools.steps import FixedThreshold, MinMax, Peaks, Stage, State
from camtools.steps.peaks import part_boxes, peak_basins


def state(*maps, theta=0.2):
    """A state with maps (n, 1, H, W) and their masks at a fraction of the maximum."""
    stacked = torch.stack([torch.as_tensor(m, dtype=torch.float32) for m in maps])[:, None]
    return FixedThreshold(theta)(State(maps=stacked))


def hills(*peaks, height=24, width=40, spread=30.0):
    """Round hills (x, y, how high), the higher of each pixel."""
    y, x = np.mgrid[:height, :width]
    return np.max([top * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * spread)) for px, py, top in peaks], axis=0)


def parts(values, step, **options):
    return step(state(values, **options)).parts[0, 0].numpy()


def test_a_row_by_hand():
    row = [[0.0, 0.5, 1.0, 0.6, 0.4, 0.8, 0.3, 0.0, 0.5]]
    made = state(row)
    done = Peaks(h=0.3)(made)
    # From 0.8 to 1.0 the map falls to 0.4, by 0.4; the low peak at the end is a part of the mask of its own. The
    # valley's own pixel goes to the peak beside it.
    assert done.parts.tolist() == [[[[0, 1, 1, 1, 2, 2, 2, 0, 3]]]]
    assert done.parts.dtype == torch.int32
    assert done.masks is made.masks and done.maps is made.maps
    [found] = part_boxes(done, Peaks(h=0.3))
    assert found.boxes.tolist() == [[1, 0, 4, 1], [4, 0, 7, 1], [8, 0, 9, 1]]
    torch.testing.assert_close(found.peaks, torch.tensor([1.0, 0.8, 0.5]))
    assert Peaks(h=0.45)(made).parts.tolist() == [[[[0, 1, 1, 1, 1, 1, 1, 0, 2]]]]  # 0.4 is not deep enough


def test_two_blobs_that_touch_are_two_boxes():
    values = hills((10, 12, 1.0), (28, 12, 0.8))
    made = state(values)
    [whole], [apart] = part_boxes(made, None), part_boxes(made, Peaks(h=0.2))
    assert len(whole.boxes) == 1
    (x0, _, valley, _), (start, _, x1, _) = apart.boxes.tolist()
    assert valley == start and abs(valley - 19) <= 1  # the hills are equally high at 19.4
    assert [x0, x1] == [whole.boxes[0, 0], whole.boxes[0, 2]]
    torch.testing.assert_close(apart.peaks, torch.tensor([1.0, 0.8]), atol=1e-6, rtol=0)


def test_a_plateau_is_one_peak():
    values = np.zeros((9, 15))
    values[2:7, 1:6] = values[2:7, 9:14] = 1.0  # two equal plateaus
    values[4, 6:9] = 0.5  # and a bridge
    found = parts(values, Peaks(h=0.4))
    assert set(np.unique(found[2:7, 1:6])) == {1} and set(np.unique(found[2:7, 9:14])) == {2}
    assert found.max() == 2
    assert parts(values, Peaks(h=0.5)).max() == 1  # by more than h, not by as much
    assert np.array_equal(parts(np.ones((3, 4)), Peaks()), np.ones((3, 4)))


def test_one_peak_with_noise_stays_whole():
    rng = np.random.default_rng(0)
    values = np.clip(hills((20, 12, 0.9), spread=150) + 0.1 * rng.random((24, 40)), 0, 1)
    made = state(values)
    [whole], [found] = part_boxes(made, None), part_boxes(made, Peaks(h=0.15))
    assert found.boxes.tolist() == whole.boxes.tolist()
    assert len(part_boxes(made, Peaks(h=0.01, overlap=1.0))[0].boxes) > 3  # without depth noise has peaks


def test_h_is_a_fraction_of_the_maximum():
    values = hills((10, 12, 1.0), (28, 12, 0.8))
    for h in (0.1, 0.3, 0.6):
        assert np.array_equal(parts(0.25 * values, Peaks(h)), parts(values, Peaks(h)))


def with_paths(values, inside, h):
    """How many peaks count, from the definition: pixels join from the highest down, and a peak ends at its saddle."""
    order = sorted(zip(*np.nonzero(inside), strict=True), key=lambda p: -values[p])
    root, top, kept = {}, {}, 0

    def find(p):
        while root[p] != p:
            p = root[p]
        return p

    for y, x in order:
        root[y, x], top[y, x] = (y, x), values[y, x]
        for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
            if near in root and (one := find(near)) != (other := find((y, x))):
                low, high = sorted((one, other), key=lambda p: top[p])
                kept += top[low] - values[y, x] > h
                root[low] = high
    return kept + len({find(p) for p in root})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("h", [0.05, 0.2, 0.5])
def test_the_peaks_are_those_of_the_definition(seed, h):
    values = np.random.default_rng(seed).random((9, 13)).astype(np.float32)
    inside = values > 0.3
    found = peak_basins(np.where(inside, values, -1)[None], h)[0]
    assert np.array_equal(found > 0, inside)
    assert found.max() == len(np.unique(found[inside])) == with_paths(values, inside, h)


def test_maps_in_a_batch_are_what_they_are_alone_in_any_order():
    rng = np.random.default_rng(3)
    maps = [hills(*[(*rng.integers(0, (40, 24)), t) for t in rng.uniform(0.4, 1, 5)], spread=9) for _ in range(7)]
    maps += [np.zeros((24, 40)), hills((10, 12, 1.0))]
    step = Peaks(h=0.1)
    alone = [step(state(values)).parts[0, 0] for values in maps]
    assert max(one.max() for one in alone) > 2
    for order in (range(9), [7, *range(7), 8], rng.permutation(9)):
        made = step(state(*(maps[i] for i in order)))
        assert all(torch.equal(made.parts[row, 0], alone[i]) for row, i in enumerate(order))
        boxes = [found.boxes.tolist() for found in part_boxes(made, step)]
        assert boxes == [part_boxes(state(maps[i]), step)[0].boxes.tolist() for i in order]
    classes = step(State(maps=made.maps.view(3, 3, 24, 40), masks=made.masks.view(3, 3, 24, 40)))
    assert torch.equal(classes.parts.view(9, 1, 24, 40), made.parts)


def test_cells_of_large_maps():
    small = hills((10, 12, 1.0), (28, 12, 0.8))
    large = np.kron(small, np.ones((3, 3)))
    cut = np.array([row[:118] for row in large[:70]])  # neither side is a multiple of 3
    found = parts(cut, Peaks(h=0.2, cells=40))
    assert np.array_equal(found, np.kron(parts(small, Peaks(h=0.2)), np.ones((3, 3), int))[:70, :118])


def test_overlapping_boxes_are_suppressed():
    ring = np.zeros((12, 12))
    ring[1:11, 1:11] = 0.5
    ring[2:10, 2:10] = 0.0
    ring[3:9, 3:9] = 1.0  # IoU of the boxes: 36 / 100
    made = state(ring)
    assert [len(part_boxes(made, Peaks(overlap=most))[0].boxes) for most in (0.35, 0.37, 1.0)] == [1, 2, 2]
    [kept] = part_boxes(made, Peaks(overlap=0.35))
    assert kept.boxes.tolist() == [[3, 3, 9, 9]]  # the higher


def test_in_a_pipeline():
    pipeline = Pipeline([Peaks(0.3)])
    assert pipeline.summary == "CAM, MinMax, FixedThreshold(0.2), Peaks(0.3, 64, 0.5)"
    assert pipeline.peaks is pipeline[-1] and Pipeline([]).peaks is None
    assert (Peaks.stage, Peaks.resolution) == (Stage.PARTS, "image")
    done, trace = Pipeline([MinMax(), Peaks(0.3)]).trace(
        State(maps=torch.as_tensor(hills((5, 5, 1), (30, 5, 0.9)))[None, None])
    )
    assert done.parts.max() == 2
    assert (trace[-1].step, trace[-1].stage) == ("Peaks(h=0.3, cells=64, overlap=0.5)", "parts")
    assert torch.equal(trace[-1].mask, done.masks)
    with pytest.raises(PipelineError, match="both split the masks; a pipeline has one parts step"):
        Pipeline([Peaks(), Peaks()])
    with pytest.raises(
        PipelineError, match=re.escape("(threshold) can't come after Peaks(h=0.2, cells=64, overlap=0.5)")
    ):
        Pipeline([Peaks(), FixedThreshold()])


def test_an_explanation_has_a_box_for_each_peak():
    class Red(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Conv2d(3, 2, 1, bias=False)
            self.pool, self.fc = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(2, 2, bias=False)
            with torch.no_grad():
                self.body.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None])
                self.fc.weight.copy_(torch.eye(2))

        def forward(self, x):
            return self.fc(self.pool(self.body(x)).flatten(1))

    image = np.zeros((24, 40, 3), np.uint8)
    image[..., 0] = np.rint(255 * hills((10, 12, 1.0), (28, 12, 0.8)))
    steps = [MinMax(), FixedThreshold(0.2), Peaks(0.2)]
    plain = Preprocess(input_size=(24, 40), resize=(24, 40), mean=(0, 0, 0), std=(1, 1, 1))
    exp = Explainer(Red().eval(), steps, transform=plain)(image, target=0)
    assert exp.parts.max() == 2 and len(exp.boxes) == 2
    torch.testing.assert_close(exp.box_scores, exp.score * torch.tensor([1.0, 0.8]), atol=0.003, rtol=0)
    annotations = exp.to_coco()["annotations"]
    assert [a["bbox"] for a in annotations] == [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in exp.boxes.tolist()]
    assert [a["score"] for a in annotations] == pytest.approx(exp.box_scores.tolist())
    assert sum(a["area"] for a in annotations) == exp.mask.sum()
    assert exp.to_dict()["box_scores"] == exp.box_scores.tolist()
    again = exp.cpu()
    assert torch.equal(again.parts, exp.parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": 0}, "Peaks(h=0): h must be a number, 0 < h < 1"),
        ({"h": 1.0}, "Peaks(h=1.0): h must be a number, 0 < h < 1"),
        ({"cells": 0}, "Peaks(cells=0): cells must be a whole number of at least 1"),
        ({"overlap": 1.5}, "Peaks(overlap=1.5): overlap must be a number, 0 <= overlap <= 1"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(PipelineError, match=re.escape(message)):
        Peaks(**options)


def test_without_masks():
    with pytest.raises(PipelineError, match=r"Peaks\(.*\) needs masks, but this state has none"):
        Peaks()(State(maps=torch.rand(1, 1, 3, 3)))
