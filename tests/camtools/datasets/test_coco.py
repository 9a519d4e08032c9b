from __future__ import annotations

import json

import numpy as np
import pytest

from camtools import InputError
from camtools.boxes import run_lengths
from camtools.datasets import COCO
from camtools.datasets.coco import decode_segmentation

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # x from 2 to 6, y from 1 to 4


def rectangle(x0, y0, x1, y1, size=(6, 8)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def drawn(polygon, size):
    return decode_segmentation([polygon], size)


def test_a_rectangle_covers_its_pixels():
    assert np.array_equal(drawn(SQUARE, (6, 8)), rectangle(2, 1, 6, 4))
    turned_round = [2, 4, 6, 4, 6, 1, 2, 1]
    assert np.array_equal(drawn(turned_round, (6, 8)), rectangle(2, 1, 6, 4))
    outside = [-3, -3, 20, -3, 20, 20, -3, 20]
    assert drawn(outside, (6, 8)).all()


@pytest.mark.parametrize(
    ("polygon", "rows"),
    [  # what pycocotools 2.0.11 makes of them
        ([1.2, 0.7, 6.9, 2.1, 3.3, 5.6], "........ ..##.... ..#####. ..####.. ...#.... ........"),
        ([0, 0, 7, 0, 0, 5], "######.. #####... ###..... ##...... #....... ........"),
        ([4.5, 0.5, 7.5, 3, 4.5, 5.5, 1.5, 3], "........ ...###.. ..#####. ..#####. ...###.. ........"),
        ([0, 0, 8, 6, 8, 0, 0, 6], "#......# ##....## ###..### ###..### ##....## #......#"),
    ],
)
def test_polygons_as_coco_draws_them(polygon, rows):
    assert ["".join(".#"[int(value)] for value in row) for row in drawn(polygon, (6, 8))] == rows.split()


def test_several_polygons_are_one_object():
    mask = decode_segmentation([[0, 0, 2, 0, 2, 2, 0, 2], SQUARE], (6, 8))
    assert np.array_equal(mask, rectangle(0, 0, 2, 2) | rectangle(2, 1, 6, 4))


def test_run_lengths_are_those_of_the_results():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    assert np.array_equal(decode_segmentation({"size": [7, 5], "counts": run_lengths(mask)}, (7, 5)), mask)
    assert np.array_equal(
        decode_segmentation({"size": [2, 2], "counts": [1, 2, 1]}, (2, 2)), [[False, True], [True, False]]
    )


def test_compressed_numbers():
    for text, counts in (
        ("01", [0, 1]),
        ("P1", [32]),  # 0 and more follow, then 1 x 32
        ("135N", [1, 3, 5, 1]),  # the fourth is -2 more than the second
    ):
        size = (sum(counts), 1)
        told, decoded = ({"size": [*size], "counts": given} for given in (counts, text))
        assert np.array_equal(decode_segmentation(decoded, size), decode_segmentation(told, size))
    # pycocotools 2.0.11's text of a rectangle of 4 x 3 pixels at x = 2, y = 1 in 8 x 6
    assert np.array_equal(decode_segmentation({"size": [6, 8], "counts": "=3300000;"}, (6, 8)), rectangle(2, 1, 6, 4))
    holed = rectangle(10, 5, 45, 35, (40, 50))
    holed[10, 20] = False
    text = "e<n0:000000000000000000WOGc0960000000000000000000000000000000000000000000000S6"
    assert np.array_equal(decode_segmentation({"size": [40, 50], "counts": text}, (40, 50)), holed)


def compress(counts):
    """COCO's text, written from its description, as the other direction's oracle."""
    text = ""
    for place, count in enumerate(counts):
        value, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 if more else bits))
    return text


def test_compressed_run_lengths():
    mask = rectangle(3, 2, 90, 70, (80, 100))
    mask ^= np.random.default_rng(1).random(mask.shape) > 0.97
    counts = run_lengths(mask)
    for text in (compress(counts), compress(counts).encode()):
        assert np.array_equal(decode_segmentation({"size": [80, 100], "counts": text}, (80, 100)), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([[1, 2, 3, 4, 5, float("nan")]], "three corners"),
        ({"size": [6, 7], "counts": [42]}, r"for size \[6, 7\], its image is \[6, 8\]"),
        ({"size": [6, 8], "counts": [47]}, "add up to 47, expected 6 x 8 pixels"),
        ({"size": [6, 8], "counts": [50, -2]}, "add up to 48"),
        ({"size": [6, 8], "counts": "P"}, "end within a number"),
        ({"size": [6, 8], "counts": "\x20"}, "hold ' ', which cannot occur"),
        ({"size": [6, 8], "counts": "135N"}, "do not add up to 6 x 8 pixels"),
        ({"size": [6, 8], "counts": "P2"}, "do not add up to 6 x 8 pixels"),
        ({"size": [6, 8]}, "no counts"),
        ("text", "is str, expected polygons or run lengths"),
    ],
)
def test_wrong_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, (6, 8))


@pytest.fixture
def data():
    crowd = rectangle(0, 0, 4, 3)
    return {
        "images": [
            {"id": 139, "file_name": "139.jpg", "width": 8, "height": 6},
            {"id": 7, "file_name": "sub/7.jpg", "width": 8, "height": 6},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 18, "bbox": [2, 1, 4, 3], "segmentation": [SQUARE], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 139,
                "category_id": 1,
                "bbox": [0, 0, 4, 3],
                "segmentation": {"size": [6, 8], "counts": run_lengths(crowd)},
                "iscrowd": 1,
            },
            {
                "id": 3,
                "image_id": 139,
                "category_id": 1,
                "bbox": [6.5, 3.5, 1.0, 2.0],
                "segmentation": [[6, 4, 8, 4, 8, 6]],
            },
        ],
    }


@pytest.fixture
def root(tmp_path, draw, data):
    draw(tmp_path / "val2017" / "139.jpg", (8, 6))
    draw(tmp_path / "val2017" / "sub" / "7.jpg", (8, 6))
    (tmp_path / "annotations").mkdir()
    save(tmp_path, data)
    return tmp_path


def save(root, data):
    (root / "annotations" / "instances_val2017.json").write_text(data if isinstance(data, str) else json.dumps(data))


def opened(root, **arguments):
    return COCO(root / "annotations" / "instances_val2017.json", **arguments)


def test_every_field(root):
    found = opened(root)
    assert found.ids == ["139.jpg", "sub/7.jpg"] and found.image_ids == [139, 7]
    assert found.classes == ("person", "dog")
    record = found[0]
    assert record.id == "139.jpg" and record.size == (8, 6)
    assert record.labels.tolist() == [1, 0] == found.labels_of(0)
    assert record.boxes.tolist() == [[2, 1, 6, 4], [6.5, 3.5, 7.5, 5.5]]
    assert np.array_equal(record.masks[0].numpy(), rectangle(2, 1, 6, 4))
    assert np.array_equal(record.masks[1].numpy(), drawn([6, 4, 8, 4, 8, 6], (6, 8)))
    assert np.array_equal(record.ignore.numpy(), rectangle(0, 0, 4, 3) & ~rectangle(2, 1, 6, 4))


def test_images_without_objects(root):
    record = opened(root)[1]
    assert record.labels.shape == (0,) and record.boxes.shape == (0, 4) and record.masks.shape == (0, 6, 8)
    assert record.ignore is None
    assert opened(root, keep_empty=False).image_ids == [139]


def test_a_scaled_image_scales_boxes_and_masks(root, draw):
    draw(root / "val2017" / "139.jpg", (16, 12))
    record = opened(root)[0]
    assert record.boxes[0].tolist() == [4, 2, 12, 8]
    assert np.array_equal(record.masks[0].numpy(), rectangle(4, 2, 12, 8, (12, 16)))
    assert record.ignore.shape == (12, 16)


def test_boxes_without_masks(root, data):
    for entry in data["annotations"]:
        del entry["segmentation"]
    save(root, data)
    record = opened(root, images=root / "val2017")[0]
    assert record.masks is None and len(record.boxes) == 2
    assert np.array_equal(record.ignore.numpy(), rectangle(0, 0, 4, 3))  # the crowd's box


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(InputError, match=r"(?s)COCO: .*none\.json' is not a file.*instances_val2017\.json"):
        COCO(tmp_path / "none.json")
    (root / "val2017").rename(root / "images")
    with pytest.raises(InputError, match=r"no folder of images: looked for .*val2017"):
        opened(root)
    assert len(opened(root, images=root / "images")) == 2


def change(data, **fields):
    data["annotations"][0].update(fields)
    return data


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: "{", r"instances_val2017\.json is not JSON"),
        (lambda data: [1], "is not COCO's JSON of instances"),
        (lambda data: data | {"categories": None}, "is not COCO's JSON of instances"),
        (lambda data: change(data, image_id=5), "is not COCO's JSON of instances: KeyError 5"),
        (
            lambda data: change(data, category_id=5),
            "annotation 1 of image 139 has the category 5, which is not among the 2",
        ),
        (lambda data: data | {"images": [data["images"][0] | {"width": 0}]}, "image 139 is 0 x 6"),
        (
            lambda data: data | {"images": [data["images"][0] | {"file_name": "../1.jpg"}]},
            "image 139: the file is '../1",
        ),
    ],
)
def test_wrong_json_is_named(root, data, spoil, message):
    save(root, spoil(data))
    with pytest.raises(InputError, match=message):
        opened(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 1 of image 139 has no bbox of four numbers"),
        ({"segmentation": [[1, 2]]}, "annotation 1 of image 139 cannot be drawn: its polygon"),
    ],
)
def test_a_wrong_annotation_is_named(root, data, fields, message):
    save(root, change(data, **fields))
    with pytest.raises(InputError, match=message):
        opened(root)[0]
