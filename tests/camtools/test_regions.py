"""Boxes, polygons, crops and supervision's detections of results: numbers worked out by hand."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from camtools import InputError, Preprocess
from camtools.explanation import Explanation
from camtools.images.read import read_image
from camtools.regions import ClassRegions, HasBoxes
from camtools.segmentation import Segmentation

PLAIN = Preprocess(input_size=(8, 8), resize=(8, 8))


class Result(HasBoxes):
    """The attributes of an `Explanation` that regions are made of."""

    label, name, score, mask, parts = 3, "red kite", 0.75, None, None

    def __init__(self, mask, boxes):
        self.mask = torch.as_tensor(mask)
        self.boxes = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
        self.box_scores = torch.tensor([0.75, 0.5])[: len(self.boxes)]
        self.parts = self.mask
        self.size = tuple(self.mask.shape)
        self.image = Image.fromarray(np.arange(3 * self.mask.numel(), dtype=np.uint8).reshape(*self.size, 3))


def rectangles(*boxes, size=(10, 20)):
    mask = torch.zeros(size, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture
def exp():
    boxes = [[2, 1, 8, 7], [12, 4, 16, 6]]
    return Result(rectangles(*boxes), boxes)


@pytest.fixture
def empty():
    return Result(rectangles(), [])


def test_explanations_are_such_results():
    assert issubclass(Explanation, HasBoxes)


def test_boxes_in_other_units(exp, empty):
    assert exp.xywh.tolist() == [[2, 1, 6, 6], [12, 4, 4, 2]]
    assert exp.xyxyn.numpy() == pytest.approx(np.array([[0.1, 0.1, 0.4, 0.7], [0.6, 0.4, 0.8, 0.6]]))
    assert empty.xywh.shape == empty.xyxyn.shape == (0, 4)


def test_the_crop_is_the_box_and_its_margin_within_the_image(exp, empty):
    pixels = np.asarray(exp.image)
    assert np.array_equal(np.asarray(exp.crop()), pixels[1:7, 2:8])
    assert np.array_equal(np.asarray(exp.crop(-1)), pixels[4:6, 12:16])
    assert np.array_equal(np.asarray(exp.crop(1, margin=0.5)), pixels[3:7, 10:18])
    assert np.array_equal(np.asarray(exp.crop(0, margin=0.5)), pixels[0:10, 0:11])  # 3 more on each side, cut off
    with pytest.raises(InputError, match=r"box=2: expected the number of a box, of which there are 2"):
        exp.crop(2)
    with pytest.raises(InputError, match=r"box=0: .* there are 0"):
        empty.crop()
    with pytest.raises(InputError, match=r"margin=-1: expected a finite number of at least 0"):
        exp.crop(margin=-1)


def test_parts_are_those_the_boxes_are_around():
    # A frame from 0 to 6 with a square in it: the square's box lies within the frame's, but has only its own pixels.
    mask = rectangles((0, 0, 7, 7))
    mask[1:6, 1:6] = False
    mask[2:5, 2:5] = True
    [region] = Result(mask, [[0, 0, 7, 7], [2, 2, 5, 5]]).regions
    frame, square = region.parts()
    assert frame.sum() == 49 - 25 and not frame[2:5, 2:5].any()
    assert square.all() and square.shape == (3, 3)


def test_a_box_that_is_around_no_part_has_all_of_the_mask_within_it():
    [region] = Result(rectangles((2, 1, 8, 7), (12, 4, 16, 6)), [[6, 3, 14, 9]]).regions
    [part] = region.parts()
    expected = np.zeros((6, 8), bool)
    expected[0:4, 0:2] = expected[1:3, 6:8] = True
    assert np.array_equal(part, expected)


def test_polygons_go_around_the_pixels(exp, empty):
    [[first], [second]] = exp.polygons()
    assert second.dtype == np.float32
    for polygon, (x0, y0, x1, y1) in zip((first, second), exp.boxes.tolist(), strict=True):
        assert polygon.min(0).tolist() == [x0, y0] and polygon.max(0).tolist() == [x1, y1]
    [[square], _] = exp.polygons()
    x, y = square.T  # the shoelace formula: the rectangle less its four corners, each a triangle of 1/8
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx(36 - 4 / 8)
    [[rough], _] = exp.polygons(tolerance=1)
    assert len(rough) < len(square)
    assert empty.polygons() == []
    with pytest.raises(InputError, match="tolerance=-1"):
        exp.polygons(-1)


def test_a_polygon_fills_holes_and_takes_diagonal_neighbours_along():
    ring = rectangles((2, 2, 7, 7))
    ring[3:6, 3:6] = False
    ring[7, 7] = True
    [polygons] = Result(ring, [[2, 2, 8, 8]]).polygons()
    assert len(polygons) == 1 and polygons[0].max(0).tolist() == [8, 8]


def test_a_box_without_pixels_has_no_polygon():
    assert Result(rectangles((0, 0, 2, 2)), [[10, 5, 12, 8]]).polygons() == [[]]


# supervision ----------------------------------------------------------------------------------------------------------


def test_supervision_gets_boxes_masks_scores_and_names(exp, empty):
    pytest.importorskip("supervision")
    detections = exp.to_supervision()
    assert detections.xyxy.tolist() == [[2, 1, 8, 7], [12, 4, 16, 6]]
    assert detections.class_id.tolist() == [3, 3] and detections.data["class_name"].tolist() == ["red kite"] * 2
    assert detections.confidence.tolist() == [0.75, 0.5]
    assert np.array_equal(detections.mask.any(0), exp.mask.numpy()) and detections.area.tolist() == [36, 8]
    assert len(empty.to_supervision()) == 0
    both = type(detections).merge([detections, empty.to_supervision()])
    assert len(both) == 2


def test_a_segmentation_gives_all_classes():
    pytest.importorskip("supervision")
    mask = torch.zeros(10, 20, dtype=torch.int64)
    mask[1:7, 2:8], mask[4:6, 12:16] = 4, 2
    seg = Segmentation(
        mask=mask,
        classes=(3, 1, 0),
        names=("kite", "wren", "lost"),
        scores=(0.5, 0.25, 0.125),
        probabilities=torch.zeros(4, 10, 20),
        maps=torch.ones(3, 10, 20) / torch.tensor([1, 2, 4])[:, None, None],
        backgrounds=(0.3,) * 3,
        exact=True,
        layer="layer4",
        logits=torch.arange(5.0),
        input_image=read_image(Image.new("RGB", (20, 10))),
        transform=PLAIN,
    )
    detections = seg.to_supervision()
    assert detections.class_id.tolist() == [3, 1] and detections.confidence.tolist() == [0.5, 0.125]
    assert detections.data["class_name"].tolist() == ["kite", "wren"] and detections.area.tolist() == [36, 8]
    assert [len(polygons) for polygons in seg.polygons()] == [1, 1]
    assert [isinstance(region, ClassRegions) and region.label for region in seg.regions] == [3, 1, 0]


def test_without_supervision_the_way_out_is_named(exp, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r'this needs supervision, .*: pip install "camtools\[export\]"'):
        exp.to_supervision()
