from __future__ import annotations

import csv

import pytest
import torch

from camtools import InputError
from camtools.classes.names import imagenet_names
from camtools.datasets import BoxFolder

HEADER = "file,class,x0,y0,x1,y1,width,height"


@pytest.fixture
def root(tmp_path, draw, write):
    draw(tmp_path / "birds" / "a.jpg", (20, 10))
    draw(tmp_path / "birds" / "sub" / "b.png", (10, 5))
    write(
        tmp_path / "birds.csv",
        HEADER,
        "a.jpg,wren,1,2,3.5,4,20,10",
        "sub/b.png,gull,0,0,10,10,20,10",
        "a.jpg,gull,5,5,20,10,20,10",
    )
    return tmp_path / "birds"


def test_every_field(root):
    found = BoxFolder(root)
    assert found.ids == ["a.jpg", "sub/b.png"]
    assert found.classes == ("gull", "wren")
    record = found[0]
    assert record.id == "a.jpg" and record.size == (20, 10)
    assert record.labels.tolist() == [1, 0] == found.labels_of(0)
    assert record.labels.dtype == torch.int64 and record.boxes.dtype == torch.float32
    assert record.boxes.tolist() == [[1, 2, 3.5, 4], [5, 5, 20, 10]]
    assert record.masks is None and record.ignore is None and not record.difficult.any()
    assert found.labels_of(1) == [0]


def test_boxes_follow_a_scaled_image(root):
    assert BoxFolder(root)[1].boxes.tolist() == [[0, 0, 5, 5]]


def test_a_squashed_image_is_refused(root, draw):
    draw(root / "a.jpg", (10, 10))
    with pytest.raises(InputError, match=r"a\.jpg is 10 x 10 pixels, but its annotation is for 20 x 10"):
        BoxFolder(root)[0]


def test_the_table_elsewhere_and_by_itself(root, tmp_path):
    assert BoxFolder(tmp_path / "birds.csv").ids == ["a.jpg", "sub/b.png"]
    other = (tmp_path / "birds.csv").rename(tmp_path / "boxes.txt")
    assert BoxFolder(root, other).ids == ["a.jpg", "sub/b.png"]


def test_columns_in_any_order_without_a_size(root, write, tmp_path):
    write(tmp_path / "birds.csv", "x0,y0,x1,y1,Class,note,file", "1,2,3,4,wren,?,a.jpg", ",,,,gull,?,a.jpg")
    record = BoxFolder(root)[0]
    assert record.boxes[0].tolist() == [1, 2, 3, 4] and record.boxes[1].isnan().all()
    assert record.labels.tolist() == [1, 0]


def test_whole_numbers_are_indices(root, write, tmp_path):
    write(tmp_path / "birds.csv", HEADER, "a.jpg,2,1,2,3,4,,", "sub/b.png,0,1,2,3,4,,")
    found = BoxFolder(root)
    assert found.classes == ("0", "1", "2")
    assert [found.labels_of(0), found.labels_of(1)] == [[2], [0]]
    named = BoxFolder(root, classes=["x", "y", "z", "v"])
    assert named.classes == ("x", "y", "z", "v") and named[0].label == 2
    with pytest.raises(InputError, match=r"birds\.csv, line 2: Class index 2 is out of range"):
        BoxFolder(root, classes=["x", "y"])


def test_given_classes_fix_the_order(root, write, tmp_path):
    found = BoxFolder(root, classes=["wren", "owl", "gull"])
    assert found.labels_of(0) == [0, 2]
    with pytest.raises(InputError, match=r"birds\.csv, line 2: There is no class named 'wren'"):
        BoxFolder(root, classes=["gull", "owl"])
    write(tmp_path / "birds.csv", HEADER, "a.jpg,n01440764,1,2,3,4,,", "a.jpg,goldfish,1,2,3,4,,")
    imagenet = BoxFolder(root, classes="imagenet")
    assert imagenet.classes == imagenet_names() and imagenet.labels_of(0) == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,,1,2,3,4,20,10", "line 2: the class is empty"),
        ("a.jpg,wren,1,2,1,4,20,10", "line 2: the box 1,2,1,4 is empty"),
        ("a.jpg,wren,1,2,,4,20,10", "line 2: the box is '1,2,,4', expected four numbers"),
        ("a.jpg,wren,1,2,3,4,20,", "line 2: height is '', expected a whole number, 1 or more"),
        ("a.jpg,wren,1,2,3,4", "line 2: 6 fields, expected 8"),
        ("/a.jpg,wren,1,2,3,4,20,10", "line 2: the file is '/a.jpg'"),
        ("a.jpg,wren,1,2,3,4,20,10\na.jpg,wren,1,2,3,4,20,11", "line 3: 'a.jpg' is 20 x 11, but 20 x 10 in an earlier"),
        ("a.jpg,wren,1,2,3,4,20,10\na.jpg,wren,1,2,3,4,,", "line 3: 'a.jpg' is of no stated size, but 20 x 10"),
        ("", "the list of images is empty"),
    ],
)
def test_a_wrong_row_is_named(root, write, tmp_path, row, message):
    write(tmp_path / "birds.csv", HEADER, row)
    with pytest.raises(InputError, match=message):
        BoxFolder(root)


def test_what_is_missing_is_named(root, write, tmp_path):
    with pytest.raises(InputError, match=r"(?s)nowhere' is not a folder. Expected this layout:.*FOLDER\.csv"):
        BoxFolder(tmp_path / "nowhere")
    write(tmp_path / "birds.csv", "file,label", "a.jpg,wren")
    with pytest.raises(InputError, match="line 1: no column 'class' in 'file,label'"):
        BoxFolder(root)
    (tmp_path / "birds.csv").unlink()
    with pytest.raises(InputError, match=r"no table: looked for .*birds\.csv"):
        BoxFolder(root)
    write(tmp_path / "birds.csv", HEADER, "gone.jpg,wren,1,2,3,4,,")
    with pytest.raises(InputError, match=r"gone\.jpg.*does not exist"):
        BoxFolder(root)[0]


@pytest.mark.parametrize(
    ("split", "images", "classes"),
    [
        ("cub/train", 5994, 200),
        ("cub/test", 2897, 200),
        ("ilsvrc_val/test", 2000, 1000),
        ("ilsvrc_woof/test", 250, 10),
        ("voc5/train", 1200, 5),
        ("voc5/test", 400, 5),
    ],
)
def test_the_shared_images(shared, split, images, classes):
    found = BoxFolder(shared / "data" / split)
    assert (len(found), len(found.classes)) == (images, classes)
    with (shared / "data" / f"{split}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(len(found.labels_of(index)) for index in range(len(found))) == len(rows)
    record = found[0]
    own = [row for row in rows if row["file"] == record.id]
    boxes = torch.tensor([[float(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in own])
    assert torch.equal(record.boxes, boxes)
    assert [found.classes[label] for label in record.labels] == [row["class"] for row in own]
    assert record.size == (int(own[0]["width"]), int(own[0]["height"]))


def test_shared_dogs_as_imagenet_classes(shared):
    found = BoxFolder(shared / "data" / "ilsvrc_woof" / "test", classes="imagenet")
    assert found.classes[found[0].label] == "Shih-Tzu"


def test_labels_alone_are_enough(root, write, tmp_path):
    write(tmp_path / "birds.csv", "class,file", "wren,a.jpg", "kite,sub/b.jpg")
    data = BoxFolder(root)
    assert data.classes == ("kite", "wren") and [data.labels_of(i) for i in range(2)] == [[1], [0]]
    assert data[0].boxes.shape == (1, 4) and data[0].boxes.isnan().all()
    write(tmp_path / "birds.csv", "file,class,x0,y0", "a.jpg,wren,1,2")
    with pytest.raises(InputError, match="line 2: the box is '1,2,,', expected four numbers"):
        BoxFolder(root)
