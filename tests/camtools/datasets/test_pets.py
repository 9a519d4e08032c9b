from __future__ import annotations

import numpy as np
import pytest

from camtools import InputError
from camtools.datasets import OxfordPets


@pytest.fixture
def trimap():
    values = np.full((6, 8), 2)
    values[1:5, 2:7] = 3
    values[2:4, 3:6] = 1
    return values


@pytest.fixture
def root(tmp_path, draw, write, trimap):
    base = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "american_bulldog_10"):
        draw(base / "images" / f"{name}.jpg", (8, 6))
        draw(base / "annotations" / "trimaps" / f"{name}.png", trimap, "P")
    write(base / "annotations" / "test.txt", "Abyssinian_1 1 1 1", "american_bulldog_10 2 2 1")
    write(base / "annotations" / "trainval.txt", "#Image CLASS-ID SPECIES BREED ID", "Abyssinian_1 1 1 1")
    return tmp_path


def test_every_field(root, trimap):
    found = OxfordPets(root)
    assert found.ids == ["Abyssinian_1", "american_bulldog_10"]
    assert found.classes == ("Abyssinian", "American Bulldog")
    record = found[1]
    assert record.id == "american_bulldog_10" and record.size == (8, 6)
    assert record.labels.tolist() == [1] == found.labels_of(1)
    assert record.boxes.tolist() == [[3, 2, 6, 4]]
    assert np.array_equal(record.masks[0].numpy(), trimap == 1)
    assert np.array_equal(record.ignore.numpy(), trimap == 3)


def test_the_border_as_foreground(root, trimap):
    record = OxfordPets(root / "oxford-iiit-pet", "trainval", border="foreground")[0]
    assert record.boxes.tolist() == [[2, 1, 7, 5]]
    assert np.array_equal(record.masks[0].numpy(), trimap != 2)
    assert record.ignore is None


def test_no_pet_no_box(root, draw):
    draw(root / "oxford-iiit-pet" / "annotations" / "trimaps" / "Abyssinian_1.png", np.full((6, 8), 2))
    record = OxfordPets(root)[0]
    assert record.boxes.isnan().all() and not record.masks.any() and record.ignore is None


def test_what_is_missing_is_named(root, tmp_path, write):
    with pytest.raises(InputError, match=r"(?s)Oxford-IIIT Pet: no annotations.*trimaps/Abyssinian_1\.png"):
        OxfordPets(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"split='val': expected 'trainval' or 'test'"):
        OxfordPets(root, "val")
    with pytest.raises(InputError, match=r"border='drop': expected 'ignore' or 'foreground'"):
        OxfordPets(root, border="drop")
    base = root / "oxford-iiit-pet" / "annotations"
    write(base / "test.txt", "Abyssinian_1 1 1 1", "american_bulldog_10 3 2 1")
    with pytest.raises(InputError, match=r"test\.txt has no image of class 2"):
        OxfordPets(root)
    write(base / "test.txt", "Abyssinian_1 1")
    with pytest.raises(InputError, match=r"test\.txt, line 1: 'Abyssinian_1 1' has 2 fields, expected 4"):
        OxfordPets(root)
    (base / "test.txt").unlink()
    with pytest.raises(InputError, match="no list of the test images"):
        OxfordPets(root)
    (base / "trimaps").rename(base / "t")
    with pytest.raises(InputError, match="no folder trimaps"):
        OxfordPets(root)
