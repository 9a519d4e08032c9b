from __future__ import annotations

import numpy as np
import pytest

from camtools import InputError
from camtools.datasets import CUB


@pytest.fixture
def root(tmp_path, draw, write):
    base = tmp_path / "data" / "CUB_200_2011"
    names = ["001.Gull/Gull_1.jpg", "001.Gull/Gull_2.jpg", "002.Wren/Wren_1.jpg"]
    sizes = [(8, 6), (5, 5), (7, 4)]
    for name, size in zip(names, sizes, strict=True):
        draw(base / "images" / name, size)
    write(base / "images.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    write(base / "classes.txt", "1 001.Gull", "2 002.Wren")
    write(base / "image_class_labels.txt", "1 1", "2 1", "3 2")
    write(base / "train_test_split.txt", "1 0", "2 1", "3 0")
    write(base / "bounding_boxes.txt", "1 0.0 1.0 5.5 4.0", "2 1.0 1.0 2.0 2.0", "3 2.0 0.0 4.0 3.0")
    return tmp_path / "data"


@pytest.fixture
def masks(root, draw):
    levels = np.array([[0, 51, 102, 153, 204, 255, 0, 128]] * 6)
    draw(root / "segmentations" / "001.Gull" / "Gull_1.png", levels)
    draw(root / "segmentations" / "002.Wren" / "Wren_1.png", np.zeros((4, 6)))
    return levels


def test_every_field(root):
    found = CUB(root)
    assert found.ids == ["001.Gull/Gull_1.jpg", "002.Wren/Wren_1.jpg"]
    assert found.classes == ("001.Gull", "002.Wren")
    assert repr(found) == "CUB(2 images, 2 classes)"
    record = found[0]
    assert record.id == "001.Gull/Gull_1.jpg" and record.size == (8, 6) and record.image.mode == "RGB"
    assert record.labels.tolist() == [0] == found.labels_of(0)
    assert record.boxes.tolist() == [[0, 1, 5.5, 5]]
    assert record.masks is None and record.ignore is None and record.difficult.tolist() == [False]
    assert found[1].labels.tolist() == [1] and found[-1].boxes.tolist() == [[2, 0, 6, 3]]


def test_splits_and_the_folder_itself(root):
    assert CUB(root / "CUB_200_2011", "train").ids == ["001.Gull/Gull_2.jpg"]
    assert len(CUB(root, "all")) == 3
    with pytest.raises(InputError, match=r"split='val': expected one of 'train', 'test', 'all'"):
        CUB(root, "val")


def test_masks_are_what_most_annotators_marked(root, masks):
    found = CUB(root)
    assert np.array_equal(found[0].masks[0].numpy(), masks > 127)
    assert found[0].mask.sum() == 4 * 6
    assert CUB(root, masks=False)[0].masks is None
    with pytest.raises(InputError, match=r"Wren_1\.png' is 6 x 4 pixels, but its image is 7 x 4"):
        found[1]
    with pytest.raises(InputError, match=r"Gull_2\.png' cannot be read"):
        CUB(root, "train")[0]


def test_masks_that_are_not_there(root):
    with pytest.raises(InputError, match=r"CUB-200-2011: no masks: looked for .*segmentations"):
        CUB(root, masks=True)


def test_a_wrong_folder_shows_the_layout(tmp_path):
    with pytest.raises(
        InputError, match=r"(?s)no list of images: looked for .*images\.txt.*CUB_200_2011/\n.*Get it from"
    ):
        CUB(tmp_path)


@pytest.mark.parametrize("name", ["images", "classes.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_a_missing_file_is_named(root, name):
    (root / "CUB_200_2011" / name).rename(root / "elsewhere")
    with pytest.raises(InputError, match=rf"CUB-200-2011: no .*{name}"):
        CUB(root)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("bounding_boxes.txt", "1 0.0 1.0 5.5", r"bounding_boxes\.txt, line 1: .* has 4 fields, expected 5"),
        ("bounding_boxes.txt", "1 0.0 1.0 0.0 3.0", r"bounding_boxes\.txt, line 1: the box 0,1,0,4 is empty"),
        ("bounding_boxes.txt", "1 a 1 2 3", r"line 1: the box is 'a,1,2,3', expected four numbers, x,y,width,height"),
        ("bounding_boxes.txt", "7 1 1 2 3", r"bounding_boxes\.txt has no line for '1'"),
        ("image_class_labels.txt", "1 3", r"line 1: the class is '3', expected a whole number, 1 to 2"),
        ("train_test_split.txt", "1 2", r"the split is '2', expected a whole number, 0 to 1"),
        ("images.txt", "1 ../x.jpg", r"images\.txt, line 1: the file is '../x.jpg'"),
    ],
)
def test_a_wrong_line_is_named(root, write, name, line, message):
    write(root / "CUB_200_2011" / name, line)
    with pytest.raises(InputError, match=message):
        CUB(root)
