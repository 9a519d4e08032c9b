from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from camtools import InputError
from camtools.classes.names import imagenet_names
from camtools.datasets import ILSVRC

NAMES = ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"]
TENCH, GOLDFISH = "n01440764", "n01443537"  # the first two of the sorted wnids
XML = (
    "<annotation><size><width>{}</width><height>{}</height></size><object><name>{}</name><bndbox><xmin>{}</xmin>"
    "<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def flat(tmp_path, draw):
    for name in NAMES:
        draw(tmp_path / "val" / f"{name}.JPEG", (20, 10))
    return tmp_path


@pytest.fixture
def csv(flat, write):
    return write(
        flat / "LOC_val_solution.csv",
        "ImageId,PredictionString",
        f"{NAMES[1]},{GOLDFISH} 0 1 4 5 {GOLDFISH} 10 2 19 9 ",
        f"{NAMES[0]},{TENCH} 3 0 20 9",
    )


def test_kaggles_table(flat, csv):
    found = ILSVRC(flat)
    assert found.ids == NAMES and found.classes == imagenet_names()
    record = found[1]
    assert record.id == NAMES[1] and record.size == (20, 10)
    assert record.labels.tolist() == [1, 1] == found.labels_of(1)
    assert record.boxes.tolist() == [[0, 1, 5, 6], [10, 2, 20, 10]]
    assert record.masks is None and record.ignore is None
    assert found[0].label == 0 and found[0].boxes.tolist() == [[3, 0, 20, 10]]  # within the image


def test_kaggles_folders(tmp_path, flat, csv):
    inner = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    inner.mkdir(parents=True)
    (flat / "val").rename(inner / "val")
    assert ILSVRC(tmp_path)[1].labels.tolist() == [1, 1]


@pytest.mark.parametrize("place", ["Annotations/val", "ILSVRC/Annotations/CLS-LOC/val", "bbox/val", "elsewhere"])
def test_xml(flat, write, place):
    write(flat / place / f"{NAMES[0]}.xml", XML.format(20, 10, GOLDFISH, 0, 2, 19, 9))
    write(flat / place / f"{NAMES[1]}.xml", XML.format(40, 20, TENCH, 0, 2, 38, 9))
    found = ILSVRC(flat, truth=flat / place if place == "elsewhere" else None)
    assert found.labels_of(0) == [1] and found[0].boxes.tolist() == [[0, 2, 20, 10]]
    assert found[1].label == 0 and found[1].boxes.tolist() == [[0, 1, 19.5, 5]]  # the image is half as large


def test_class_folders_alone(tmp_path, draw):
    draw(tmp_path / "val" / GOLDFISH / f"{NAMES[0]}.JPEG", (20, 10))
    draw(tmp_path / "val" / TENCH / f"{NAMES[1]}.JPEG", (20, 10))
    found = ILSVRC(tmp_path)
    assert found.ids == NAMES  # in the order of their numbers
    assert [found.labels_of(0), found.labels_of(1)] == [[1], [0]]
    record = found[0]
    assert record.labels.tolist() == [1] and record.boxes.shape == (0, 4)


@pytest.fixture
def devkit(flat, write):
    """A devkit whose ids are not in the order of the wnids, and whose last synset is not a class."""
    data = flat / "ILSVRC2012_devkit_t12" / "data"
    write(data / "ILSVRC2012_validation_ground_truth.txt", "1", "2")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(1, GOLDFISH, "goldfish", 0), (2, TENCH, "tench", 0), (3, "n01439121", "fish", 2)]
    savemat(data / "meta.mat", {"synsets": np.array([[row] for row in rows], dtype=kinds)})
    return data


def test_the_devkits_ids(flat, devkit, write):
    found = ILSVRC(flat)
    assert [found[0].label, found[1].label] == [1, 0]
    assert found[0].boxes.shape == (0, 4)
    write(devkit / "ILSVRC2012_validation_ground_truth.txt", "3", "2")
    with pytest.raises(InputError, match=r"ground_truth\.txt, line 1: 'id 3' is not one of the 1,000 classes"):
        ILSVRC(flat)
    write(devkit / "ILSVRC2012_validation_ground_truth.txt", "1")
    with pytest.raises(InputError, match=r"'ILSVRC2012_val_00000002' has no line in"):
        ILSVRC(flat)
    (devkit / "meta.mat").write_text("broken")
    with pytest.raises(InputError, match=r"meta\.mat cannot be read"):
        ILSVRC(flat)
    (devkit / "meta.mat").unlink()
    with pytest.raises(InputError, match=r"numbers the classes 1 to 1000 in the devkit's own order.*meta\.mat"):
        ILSVRC(flat)


def test_what_is_missing_is_named(tmp_path, flat):
    with pytest.raises(InputError, match=r"(?s)nothing says the images' classes.*LOC_val_solution\.csv"):
        ILSVRC(flat)
    with pytest.raises(InputError, match=r"truth='nowhere' does not exist"):
        ILSVRC(flat, truth="nowhere")
    with pytest.raises(InputError, match=r"nowhere' is not a folder"):
        ILSVRC(tmp_path / "nowhere")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images in .*val"):
        ILSVRC(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no folder of images"):
        ILSVRC(flat / "val")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"{NAMES[0]},{TENCH} 1 2 3", "line 2: .* expected groups of a wnid and four numbers"),
        (f"{NAMES[0]},{TENCH} 1 2 3 x", "line 2: .* expected four numbers after each wnid"),
        (f"{NAMES[0]},n00000000 1 2 3 4", "line 2: 'n00000000' is not one of the 1,000 classes"),
        (f"{NAMES[0]},{TENCH} 1 2 3 4", f"has no line for '{NAMES[1]}': expected one for every image"),
    ],
)
def test_a_wrong_row_is_named(flat, write, row, message):
    write(flat / "LOC_val_solution.csv", "ImageId,PredictionString", row)
    with pytest.raises(InputError, match=message):
        ILSVRC(flat)


def test_a_wrong_annotation_is_named(flat, write):
    write(flat / "Annotations" / "val" / f"{NAMES[0]}.xml", "<annotation></annotation>")
    found = ILSVRC(flat)
    with pytest.raises(InputError, match=r"00000001\.xml' has no object"):
        found[0]
    with pytest.raises(InputError, match=r"00000002\.xml' cannot be read"):
        found.labels_of(1)
