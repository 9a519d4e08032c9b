from __future__ import annotations

import numpy as np
import pytest

from camtools import InputError
from camtools.datasets import VOC
from camtools.datasets.voc import CLASSES, read_xml

CAT, DOG, PERSON = (CLASSES.index(name) for name in ("cat", "dog", "person"))


def node(name, *box, difficult=None, part=""):
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox>{part}</object>"


def xml(*nodes, size=(10, 8)):
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(nodes)}</annotation>"


HEAD = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
CLASS = np.array([[0] * 10, *[[0, 8, 8, 8, 255, 255, 12, 12, 12, 0]] * 3, *[[0] * 10] * 4])
INSTANCE = np.array([[0] * 10, *[[0, 1, 1, 1, 255, 255, 2, 2, 2, 0]] * 3, *[[0] * 10] * 4])


@pytest.fixture
def root(tmp_path, draw, write):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_2"):
        draw(base / "JPEGImages" / f"{name}.jpg", (10, 8))
    boxes = [node("cat", 2, 2, 4, 4, difficult=0, part=HEAD), node("dog", 7, 2, 9.5, 4, difficult=1)]
    write(base / "Annotations" / "2007_1.xml", xml(*boxes))
    write(base / "Annotations" / "2007_2.xml", xml())
    write(base / "ImageSets" / "Main" / "val.txt", "2007_1", "2007_2")
    write(base / "ImageSets" / "Segmentation" / "val.txt", "2007_1")
    draw(base / "SegmentationClass" / "2007_1.png", CLASS, "P")
    draw(base / "SegmentationObject" / "2007_1.png", INSTANCE, "P")
    return tmp_path


def test_detection(root):
    found = VOC(root)
    assert found.ids == ["2007_1", "2007_2"] and found.classes == CLASSES and len(CLASSES) == 20
    record = found[0]
    assert record.id == "2007_1" and record.size == (10, 8)
    assert record.labels.tolist() == [CAT, DOG] == found.labels_of(0)
    assert record.boxes.tolist() == [[1, 1, 4, 4], [6, 1, 9.5, 4]]
    assert record.difficult.tolist() == [False, True]
    assert record.masks is None and record.ignore is None
    empty = found[1]
    assert empty.labels.shape == (0,) and empty.boxes.shape == (0, 4) and empty.difficult.shape == (0,)


def test_segmentation(root):
    found = VOC(root / "VOCdevkit", task="segmentation")
    assert found.ids == ["2007_1"]
    record = found[0]
    assert record.boxes.tolist() == [[1, 1, 4, 4], [6, 1, 9.5, 4]]
    assert np.array_equal(record.masks.numpy(), np.stack([INSTANCE == 1, INSTANCE == 2]))
    assert np.array_equal(record.ignore.numpy(), CLASS == 255)
    assert np.array_equal(record.semantic().numpy(), CLASS)  # VOC's own values: class index + 1, 0 and 255
    assert found.labels_of(0) == [CAT, DOG]


def test_void_pixels_belong_to_nobody(root, draw):
    base = root / "VOCdevkit" / "VOC2012"
    classes = CLASS.copy()
    classes[1, 1] = 255  # in the first instance
    draw(base / "SegmentationClass" / "2007_1.png", classes, "P")
    record = VOC(root, task="segmentation")[0]
    assert not (record.mask & record.ignore).any() and record.ignore[1, 1]
    assert np.array_equal(record.semantic().numpy(), classes)


def test_instances_numbered_otherwise_find_their_object(root, draw):
    base = root / "VOCdevkit" / "VOC2012"
    swapped = np.where(INSTANCE == 1, 2, np.where(INSTANCE == 2, 1, INSTANCE))
    draw(base / "SegmentationObject" / "2007_1.png", swapped, "P")
    record = VOC(base, task="segmentation")[0]
    assert np.array_equal(record.masks.numpy(), np.stack([INSTANCE == 1, INSTANCE == 2]))


def test_instances_without_object_and_objects_without_instance(root, write):
    base = root / "VOCdevkit" / "VOC2012"
    write(base / "Annotations" / "2007_1.xml", xml(node("person", 1, 6, 3, 8), node("dog", 7, 2, 9, 4)))
    found = VOC(root, task="segmentation")
    record = found[0]
    assert record.labels.tolist() == [PERSON, DOG, CAT] == found.labels_of(0)
    assert record.boxes.tolist() == [[0, 5, 3, 8], [6, 1, 9, 4], [1, 1, 4, 4]]
    assert record.difficult.tolist() == [False, False, True]
    assert np.array_equal(record.masks.numpy(), np.stack([INSTANCE == 9, INSTANCE == 2, INSTANCE == 1]))
    assert np.array_equal(record.semantic().numpy(), CLASS)


def test_an_image_without_objects_has_empty_masks(root, draw, write):
    base = root / "VOCdevkit" / "VOC2012"
    write(base / "ImageSets" / "Segmentation" / "val.txt", "2007_2")
    for kind in ("SegmentationClass", "SegmentationObject"):
        draw(base / kind / "2007_2.png", np.zeros((8, 10)), "P")
    record = VOC(root, task="segmentation")[0]
    assert record.masks.shape == (0, 8, 10) and record.ignore is None and not record.semantic().any()


def test_2007_has_a_test_split(root, write):
    base = (root / "VOCdevkit" / "VOC2012").rename(root / "VOCdevkit" / "VOC2007")
    write(base / "ImageSets" / "Main" / "test.txt", "2007_1")
    assert VOC(root, 2007).ids == ["2007_1"]
    assert len(VOC(root, 2007, "val")) == 2
    with pytest.raises(InputError, match=r"(?s)PASCAL VOC 2012: no folder VOC2012.*|no list of the val"):
        VOC(root / "nowhere", 2012)


def test_boxes_follow_a_scaled_image(root, draw):
    draw(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2007_1.jpg", (20, 16))
    assert VOC(root)[0].boxes[0].tolist() == [2, 2, 8, 8]
    with pytest.raises(InputError, match=r"2007_1\.png' is 10 x 8 pixels, but its image is 20 x 16"):
        VOC(root, task="segmentation")[0]


def test_wrong_arguments(root):
    for arguments, message in [
        ({"year": 2010}, "year=2010: expected 2007 or 2012"),
        ({"split": "test"}, "split='test': expected one of 'train', 'val', 'trainval'"),
        ({"task": "action"}, "task='action': expected 'detection' or 'segmentation'"),
        ({"split": "train"}, r"no list of the train images: looked for .*ImageSets.Main.train\.txt"),
    ]:
        with pytest.raises(InputError, match=message):
            VOC(root, **arguments)


@pytest.mark.parametrize("name", ["JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"])
def test_a_missing_folder_is_named(root, name):
    base = root / "VOCdevkit" / "VOC2012"
    (base / name).rename(base / "elsewhere")
    with pytest.raises(InputError, match=rf"(?s)PASCAL VOC 2012: no folder {name}.*VOCdevkit/VOC2012/"):
        VOC(root, task="segmentation")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"2007_1\.xml' is not XML"),
        (xml(node("unicorn", 1, 1, 2, 2)), r"2007_1\.xml' has the class 'unicorn'"),
        (xml("<object><name>cat</name></object>"), "'cat' has no box"),
        (xml("<object><name> </name></object>"), "an object has no name"),
        (xml(node("cat", 5, 1, 2, 2)), "'cat' has the box 5,1,2,2"),
        (xml(node("cat", "x", 1, 2, 2)), "could not convert"),
    ],
)
def test_a_wrong_annotation_is_named(root, write, text, message):
    write(root / "VOCdevkit" / "VOC2012" / "Annotations" / "2007_1.xml", text)
    with pytest.raises(InputError, match=message):
        VOC(root)[0]


def test_wrong_masks_are_named(root, draw):
    base = root / "VOCdevkit" / "VOC2012"
    found = VOC(root, task="segmentation")
    draw(base / "SegmentationClass" / "2007_1.png", np.where(CLASS == 8, 21, CLASS), "P")
    with pytest.raises(InputError, match=r"'2007_1' .* hold the class 21: expected classes 0 to 20 and 255"):
        found[0]
    draw(base / "SegmentationClass" / "2007_1.png", np.where(CLASS == 8, 0, CLASS), "P")
    with pytest.raises(InputError, match="have an instance on the background"):
        found[0]
    draw(base / "SegmentationClass" / "2007_1.png", CLASS[:4], "P")
    with pytest.raises(InputError, match="10 x 4 pixels, but its image is 10 x 8"):
        found[0]
    with pytest.raises(InputError, match=r"are \(4, 10\) and \(8, 10\): expected the same height and width"):
        found.labels_of(0)


def test_a_missing_annotation_and_size(tmp_path, write):
    with pytest.raises(InputError, match=r"none\.xml' cannot be read \(No such file"):
        read_xml(tmp_path / "none.xml")
    assert read_xml(write(tmp_path / "a.xml", xml(size=(0, 0)))).size is None
