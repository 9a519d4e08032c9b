"""Boxes at all levels: hand-computed maps, and 2,000 maps against OpenCV, exactly."""

import numpy as np
import pytest
import torch

from camtools.errors import InputError
from camtools.metrics import box_ious, largest_boxes, scoremaps

reference = pytest.importorskip("wsol_reference", exc_type=ImportError)  # needs OpenCV


def levels(rows: list[str]) -> torch.Tensor:
    """A map from digits: (1, H, W) uint8."""
    return torch.tensor([[int(digit) for digit in row] for row in rows], dtype=torch.uint8)[None]


def test_one_block_has_its_box_with_one_more_on_the_right_and_below():
    box = largest_boxes(levels(["00000", "02200", "02200", "00000"]))
    assert box.shape == (1, 256, 4)
    assert box[0, 0].tolist() == box[0, 1].tolist() == [1, 1, 3, 3]
    assert box[0, 2:].eq(0).all()  # nothing is above 2


def test_the_extra_pixel_stops_at_the_edge():
    assert largest_boxes(levels(["0000", "0011", "0011"]))[0, 0].tolist() == [2, 1, 3, 2]


def test_area_is_that_of_the_polygon_through_pixel_centres():
    # the line has five pixels and no area, the block four and area 1
    assert largest_boxes(levels(["11111", "00000", "11000", "11000"]))[0, 0].tolist() == [0, 2, 2, 3]
    # the ring's polygon includes its hole: 4 against 3 for the block
    ring = levels(["1110000", "1011111", "1111111", "0000000", "1111000", "1111000"])
    assert largest_boxes(ring)[0, 0].tolist() == [0, 0, 6, 3]


def test_of_equal_areas_the_one_that_begins_last_counts():
    assert largest_boxes(levels(["1010"] * 1 + ["0000"] + ["1000"]))[0, 0].tolist() == [0, 2, 1, 2]
    assert largest_boxes(levels(["110110", "110110", "000000"]))[0, 0].tolist() == [3, 0, 5, 2]


def test_diagonal_neighbours_are_one_component_but_not_one_hole():
    assert largest_boxes(levels(["100", "010", "001"]))[0, 0].tolist() == [0, 0, 2, 2]
    two_holes = levels(["11110", "10111", "11011", "11111", "00000"])
    truth = [torch.tensor([[0.0, 0.0, 3.0, 3.0]])]  # the box around the upper left hole
    assert box_ious(two_holes, truth, [(5, 5)]).any[0, 0] == 1.0


def test_a_hole_has_a_box_that_only_v2_sees():
    ring = levels(["3333333", "3333333", "3322333", "3322333", "3333333", "3333333", "3333333"])
    truth = [torch.tensor([[1.0, 1.0, 5.0, 5.0]])]  # x 1 ... 4 + 1, the hole 2 ... 3 with one pixel around it
    found = box_ious(ring, truth, [(7, 7)])
    assert found.any[0, :4].tolist() == [25 / 49, 25 / 49, 1.0, 0.0]
    assert found.largest[0, :4].tolist() == [25 / 49, 25 / 49, 25 / 49, 0.0]


def test_no_contour_is_the_box_0_0_0_0():
    found = box_ious(torch.zeros(1, 4, 4, dtype=torch.uint8), [torch.tensor([[0.0, 0.0, 1.0, 0.0]])], [(4, 4)])
    assert found.largest.eq(1 / 2).all() and found.any.eq(1 / 2).all()


def test_truth_is_scaled_and_truncated_and_any_box_may_be_hit():
    block = levels(["0000", "0110", "0110", "0000"])  # box 1, 1, 3, 3
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [29.0, 20.0, 79.0, 67.5], [torch.nan] * 4])
    assert box_ious(block, [boxes], [(80, 80)]).largest[0, 0] == 9 / 9  # 29/20 -> 1, 79/20 -> 3, 67.5/20 -> 3


@pytest.mark.parametrize("count", [40, pytest.param(143, marks=pytest.mark.slow)])  # 14 families: 560, 2,002 maps
@pytest.mark.parametrize("family", reference.FAMILIES)
def test_random_and_adversarial_maps_agree_with_opencv_exactly(family, count):
    rng = np.random.default_rng(sum(map(ord, family)))
    for index in range(count):
        height, width = rng.integers(3, 18, 2) if index < count - 1 else (224, 224)
        if index == count - 1 and family in ("noise", "all levels"):
            height, width = 61, 67  # 256 masks of thousands of contours each take OpenCV too long
        score = reference.FAMILIES[family](rng, height, width)
        size = tuple(int(side) for side in rng.integers(20, 500, 2))
        boxes = reference.true_boxes(rng, size[1], size[0])
        quantised = scoremaps(torch.from_numpy(score)[None], size=None)
        expected = reference.levels_of(score)
        assert np.array_equal(quantised[0].numpy(), expected), index
        truth = reference.scaled(boxes, size, (width, height))
        largest, single, several = reference.ious_at_levels(expected, truth)
        assert np.array_equal(largest_boxes(quantised)[0].numpy(), largest), index
        found = box_ious(quantised, [boxes], [size], workers=1)
        assert np.array_equal(found.largest[0].numpy(), single), index
        assert np.array_equal(found.any[0].numpy(), several), index


def test_maps_that_do_not_begin_at_0_and_do_not_end_at_255():
    rng = np.random.default_rng(5)
    for _ in range(50):
        values = rng.integers(40, 90, (9, 11)).astype(np.uint8)
        largest, single, several = reference.ious_at_levels(values, np.array([[2, 3, 8, 7]]))
        found = box_ious(torch.from_numpy(values)[None], [np.array([[2, 3, 8, 7]])], [(11, 9)])
        assert np.array_equal(largest_boxes(torch.from_numpy(values)[None])[0].numpy(), largest)
        assert np.array_equal(found.largest[0].numpy(), single)
        assert np.array_equal(found.any[0].numpy(), several)


def test_levels_say_all_that_the_thousand_thresholds_say():
    rng = np.random.default_rng(1)
    for family, make in reference.FAMILIES.items():
        values = reference.levels_of(make(rng, 15, 13))
        truth = np.array([[2, 3, 9, 11], [0, 0, 4, 4]])
        _, single, several = reference.ious_at_levels(values, truth)
        by_level = (reference.TAUS * 255).astype(int)
        slow_single, slow_several = reference.ious_at_thresholds(values, truth)
        assert np.array_equal(slow_single, single[by_level]), family
        assert np.array_equal(slow_several, several[by_level]), family


def test_threads_change_nothing():
    maps = scoremaps(torch.rand(7, 12, 12))
    boxes, sizes = [torch.tensor([[1.0, 2.0, 30.0, 40.0]])] * 7, [(50, 60)] * 7
    alone, shared = (box_ious(maps, boxes, sizes, workers=workers) for workers in (1, 3))
    assert alone.largest.equal(shared.largest) and alone.any.equal(shared.any)
    assert box_ious(maps[:0], [], []).largest.shape == (0, 256)


BOX = [torch.tensor([[1.0, 1.0, 3.0, 3.0]])]


@pytest.mark.parametrize(
    ("boxes", "sizes", "message"),
    [
        (BOX * 2, [(9, 9)], r"boxes: got 2 for 1 maps"),
        (BOX, [(9, 0)], r"sizes\[0\] is \(9, 0\): expected \(width, height\), two positive"),
        ([BOX[0][0]], [(9, 9)], r"boxes\[0\]: expected \(N, 4\).*got \(4,\)"),
        ([torch.zeros(0, 4)], [(9, 9)], r"boxes\[0\] has no box: leave out images"),
        ([torch.full((2, 4), torch.nan)], [(9, 9)], r"boxes\[0\] has no box"),
        (BOX, [(9, 2)], r"boxes\[0\] has \[1.0, 1.0, 3.0, 3.0\]: expected 0 <= x0 <= x1 <= 9 and 0 <= y0 <= y1 <= 2"),
        (
            [torch.tensor([[3.0, 1.0, 1.0, 3.0]])],
            [(9, 9)],
            r"boxes\[0\]\[0\] is \[3.0, .*expected finite",
        ),
        ([torch.tensor([[-1.0, 1.0, 1.0, 3.0]])], [(9, 9)], r"expected 0 <= x0"),
    ],
)
def test_true_boxes_that_cannot_be_are_refused(boxes, sizes, message):
    with pytest.raises(InputError, match=message):
        box_ious(torch.zeros(1, 4, 4, dtype=torch.uint8), boxes, sizes)


def test_other_bad_input_is_refused():
    with pytest.raises(InputError, match=r"levels: expected uint8 of shape \(B, H, W\), got \(4, 4\) torch.float32"):
        largest_boxes(torch.zeros(4, 4))
    with pytest.raises(InputError, match=r"levels: expected uint8 .*, got list"):
        largest_boxes([])
    with pytest.raises(InputError, match=r"workers=0: expected a whole number of at least 1"):
        largest_boxes(torch.zeros(1, 4, 4, dtype=torch.uint8), workers=0)
