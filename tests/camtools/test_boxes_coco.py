"""Masks as COCO annotations: run lengths decoded again, boxes and areas counted."""

import json

import numpy as np
import pytest
import torch
from skimage.measure import label, regionprops

from camtools.boxes import SPECK, boxes_from_parts, coco_annotations, run_lengths


def decoded(segmentation):
    """Undo COCO's uncompressed run lengths, as pycocotools does: column-major, background first."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    assert sum(counts) == height * width and all(count > 0 for count in counts[1:])
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width, order="F")


def annotated(mask):
    """The boxes of a mask's parts, and their annotations."""
    parts = torch.from_numpy(mask)
    [found] = boxes_from_parts(parts, parts.float(), SPECK)
    return found.boxes.tolist(), coco_annotations(parts, found)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["..", ".."], [4]),
        (["##", "##"], [0, 4]),
        (["#.", ".."], [0, 1, 3]),
        ([".#", ".."], [2, 1, 1]),
        (["..", "#."], [1, 1, 2]),
        (["..", ".#"], [3, 1]),
        ([".##", ".#.", "..."], [3, 2, 1, 1, 2]),
        (["#"], [0, 1]),
        (["."], [1]),
    ],
)
def test_run_lengths_by_hand(rows, expected):
    assert run_lengths(np.array([[cell == "#" for cell in row] for row in rows])) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (17, 23), (40, 25)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_annotations_are_the_parts_of_the_mask(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    _, annotations = annotated(mask)
    parts = label(mask, connectivity=2)
    regions = regionprops(parts)
    largest = max((region.area for region in regions), default=0)
    expected = {region.label: region for region in regions if region.area >= largest / 100}
    specks = np.isin(parts, [region.label for region in regions if region.label not in expected])
    assert len(annotations) == len(expected)
    together = np.zeros(shape, dtype=int)
    for annotation in annotations:
        part = decoded(annotation["segmentation"])
        together += part
        region = expected.pop(int(parts[part][0]))
        assert np.array_equal(part, parts == region.label)
        y0, x0, y1, x1 = region.bbox
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation["area"] == region.area
        assert annotation["iscrowd"] == 0
    assert np.array_equal(together + specks, mask)
    json.dumps(annotations)


def test_the_order_is_that_of_the_boxes():
    for seed in range(20):
        mask = np.random.default_rng(seed).random((20, 30)) < 0.25
        boxes, annotations = annotated(mask)
        found = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
        assert found == boxes


def test_touching_parts_of_two_numbers_are_two_annotations():
    parts = torch.tensor([[1, 1, 2, 2, 0], [1, 2, 2, 0, 1]])
    [found] = boxes_from_parts(parts, parts.float())
    first, second, third = coco_annotations(parts, found)
    assert decoded(first["segmentation"]).tolist() == [
        [False, False, True, True, False],
        [False, True, True, False, False],
    ]
    assert decoded(second["segmentation"]).tolist() == [
        [True, True, False, False, False],
        [True, False, False, False, False],
    ]
    assert [a["bbox"] for a in (first, second, third)] == [[1, 0, 3, 2], [0, 0, 2, 2], [4, 1, 1, 1]]
    assert [a["area"] for a in (first, second, third)] == [4, 3, 1]
