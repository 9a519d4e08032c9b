from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from camtools import InputError
from camtools.datasets import WSOL, BoxFolder, OpenImages30k


@pytest.fixture
def boxes(tmp_path, draw, write):
    """Two images: one with two boxes, one of half the size that its box was drawn on."""
    meta = tmp_path / "metadata"
    draw(tmp_path / "images" / "a" / "1.jpg", (20, 10))
    draw(tmp_path / "images" / "a" / "2.jpg", (10, 5))
    write(meta / "image_ids.txt", "a/1.jpg", "a/2.jpg")
    write(meta / "class_labels.txt", "a/1.jpg,2", "a/2.jpg,0")
    write(meta / "image_sizes.txt", "a/1.jpg,20,10", "a/2.jpg,20,10")
    write(meta / "localization.txt", "a/1.jpg,1,2,19,9", "a/2.jpg,0,0,10,8", "a/1.jpg,3,4,5,6")
    return tmp_path


@pytest.fixture
def found(boxes):
    return WSOL(boxes / "metadata", boxes / "images")


def test_boxes(found):
    assert found.ids == ["a/1.jpg", "a/2.jpg"] and found.classes == ("0", "1", "2")
    record = found[0]
    assert record.id == "a/1.jpg" and record.size == (20, 10)
    assert record.labels.tolist() == [2, 2] == found.labels_of(0)
    assert record.boxes.tolist() == [[1, 2, 19, 9], [3, 4, 5, 6]]
    assert record.masks is None and record.ignore is None
    assert found[1].boxes.tolist() == [[0, 0, 5, 4]]  # the image is half as large


def test_squashed_images(boxes, draw):
    draw(boxes / "images" / "a" / "2.jpg", (10, 10))
    with pytest.raises(InputError, match=r"2\.jpg is 10 x 10 pixels, but its annotation is for 20 x 10"):
        WSOL(boxes / "metadata", boxes / "images")[1]
    record = WSOL(boxes / "metadata", boxes / "images", squashed=True)[1]
    assert record.boxes.tolist() == [[0, 0, 5, 8]]


def test_classes_alone(boxes):
    (boxes / "metadata" / "localization.txt").unlink()
    (boxes / "metadata" / "image_sizes.txt").unlink()
    record = WSOL(boxes / "metadata", boxes / "images", classes=["x", "y", "z"])[0]
    assert record.labels.tolist() == [2] and record.boxes.shape == (0, 4)
    with pytest.raises(InputError, match=r"class_labels\.txt has the class 2, but classes has 2 names"):
        WSOL(boxes / "metadata", boxes / "images", classes=["x", "y"])


@pytest.fixture
def openimages(tmp_path, draw, write):
    """wsolevaluation's folders: two objects (the second mask half as large) and an ignored region; one object."""
    base, meta = tmp_path / "dataset" / "OpenImages", tmp_path / "metadata" / "OpenImages"
    first, second, ignore = np.zeros((3, 6, 8))
    first[1:4, 1:3] = second[2:4, 4:8] = ignore[0:3, 0:5] = 255
    one = base / "test" / "0bt_c3"
    draw(one / "1.jpg", (8, 6))
    draw(one / "1_m1.png", first, "1")
    draw(one / "1_m2.png", second[::2, ::2], "1")
    draw(one / "1_ignore.png", ignore, "1")
    draw(base / "test" / "0by6g" / "2.jpg", (8, 6))
    draw(base / "test" / "0by6g" / "2_m.png", first, "1")
    write(meta / "test" / "image_ids.txt", "test/0bt_c3/1.jpg", "test/0by6g/2.jpg")
    write(meta / "test" / "class_labels.txt", "test/0bt_c3/1.jpg,1", "test/0by6g/2.jpg,0")
    write(
        meta / "test" / "localization.txt",
        "test/0bt_c3/1.jpg,test/0bt_c3/1_m1.png,test/0bt_c3/1_ignore.png",
        "test/0bt_c3/1.jpg,test/0bt_c3/1_m2.png,",
        "test/0by6g/2.jpg,test/0by6g/2_m.png,",
    )
    return base, first > 0, second > 0, ignore > 0


def test_masks_and_ignored_regions(openimages):
    base, first, second, ignore = openimages
    data = OpenImages30k(base)
    assert data.classes == ("0by6g", "0bt_c3") and data.ids == ["test/0bt_c3/1.jpg", "test/0by6g/2.jpg"]
    record = data[0]
    assert record.labels.tolist() == [1, 1] == data.labels_of(0)
    assert np.array_equal(record.masks.numpy(), np.stack([first, second]))
    assert np.array_equal(record.mask.numpy(), first | second)
    assert np.array_equal(record.ignore.numpy(), ignore & ~first & ~second)
    assert record.boxes.tolist() == [[1, 1, 3, 4], [4, 2, 8, 4]]
    assert data[1].labels.tolist() == [0] and data[1].ignore is None


def test_openimages_splits_have_two_names(openimages, write, draw):
    base = openimages[0]
    assert OpenImages30k(base, metadata=base.parent.parent / "metadata" / "OpenImages").ids[0] == "test/0bt_c3/1.jpg"
    draw(base / "train" / "0bt_c3" / "3.jpg", (4, 4))
    write(base / "metadata" / "train" / "image_ids.txt", "train/0bt_c3/3.jpg")
    write(base / "metadata" / "train" / "class_labels.txt", "train/0bt_c3/3.jpg,0")
    for split in ("train", "train-weaksup"):
        record = OpenImages30k(base, split)[0]
        assert record.labels.tolist() == [0] and record.boxes.shape == (0, 4) and record.masks is None
    with pytest.raises(InputError, match="split='dev': expected one of 'train', 'val', 'test', 'train-weaksup'"):
        OpenImages30k(base, "dev")
    with pytest.raises(InputError, match=r"(?s)OpenImages30k: no folder of the train-fullsup images.*metadata/"):
        OpenImages30k(base, "train-fullsup")
    (base.parent.parent / "metadata" / "OpenImages" / "test" / "localization.txt").unlink()
    with pytest.raises(InputError, match=r"OpenImages30k: no list: looked for .*localization\.txt"):
        OpenImages30k(base)


def test_a_missing_mask_is_named(openimages):
    (openimages[0] / "test" / "0bt_c3" / "1_m2.png").unlink()
    with pytest.raises(InputError, match=r"1_m2\.png' cannot be read"):
        OpenImages30k(openimages[0])[0]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("class_labels.txt", ["a/1.jpg,2"], r"class_labels\.txt has no line for 'a/2.jpg'"),
        ("class_labels.txt", ["a/1.jpg,x"], r"class_labels\.txt, line 1: the class is 'x'"),
        ("image_sizes.txt", ["a/1.jpg,20"], r"image_sizes\.txt, line 1: 'a/1.jpg,20' has 2 fields, expected 3"),
        ("image_sizes.txt", ["a/1.jpg,20,0"], r"line 1: the height is '0', expected a whole number, 1 or more"),
        ("localization.txt", ["a/1.jpg,1,2,3"], r"localization\.txt, line 1: .* has 4 fields, expected 3 or 5"),
        ("localization.txt", ["a/1.jpg,5,2,3,4"], r"localization\.txt, line 1: the box 5,2,3,4 is empty"),
        ("localization.txt", ["a/1.jpg,1,2,3,4"], r"localization\.txt has no line for 'a/2.jpg'"),
        ("localization.txt", ["a/1.jpg,1,2,3,4", "a/2.jpg,m.png,"], "line 2: boxes and masks in one file"),
        ("image_ids.txt", ["a/1.jpg", "a/1.jpg"], "'a/1.jpg' is listed twice"),
        ("image_ids.txt", [], "the list of images is empty"),
    ],
)
def test_a_wrong_line_is_named(boxes, write, name, lines, message):
    write(boxes / "metadata" / name, *lines)
    with pytest.raises(InputError, match=message):
        WSOL(boxes / "metadata", boxes / "images")


def test_what_is_missing_is_named(boxes):
    with pytest.raises(InputError, match=r"(?s)no folder of images: looked for .*nowhere.*METADATA/"):
        WSOL(boxes / "metadata", boxes / "nowhere")
    with pytest.raises(InputError, match=r"no folder of masks"):
        WSOL(boxes / "metadata", boxes / "images", masks=boxes / "nowhere")
    with pytest.raises(InputError, match=r"no list of images: looked for .*image_ids\.txt"):
        WSOL(boxes, boxes / "images")


def test_shared_birds_in_this_format(shared, tmp_path, write):
    root = shared / "data" / "cub" / "test"
    with root.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = BoxFolder(root)
    number = {name: index for index, name in enumerate(expected.classes)}
    write(tmp_path / "image_ids.txt", *(row["file"] for row in rows))
    write(tmp_path / "class_labels.txt", *(f"{row['file']},{number[row['class']]}" for row in rows))
    write(tmp_path / "image_sizes.txt", *(f"{row['file']},{row['width']},{row['height']}" for row in rows))
    write(tmp_path / "localization.txt", *(",".join(list(row.values())[:1] + list(row.values())[2:6]) for row in rows))
    found = WSOL(tmp_path, root, classes=expected.classes)
    assert len(found) == 2897 and found.ids == expected.ids
    assert [found.labels_of(i) for i in range(2897)] == [expected.labels_of(i) for i in range(2897)]
    for index in (0, 1448, 2896):
        assert torch.equal(found[index].boxes, expected[index].boxes)
