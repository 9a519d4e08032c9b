"""Folders per class, and other people's data sets of (image, label)."""

import logging

import numpy as np
import pytest
import torchvision
from PIL import Image
from torch.utils.data import Subset

import camtools
from camtools import InputError
from camtools.datasets import BoxFolder, ImageFolder, LabelledImages, open_dataset
from camtools.datasets.selection import Selection

VALUES = {"wren/a.png": 200, "wren/deep/b.png": 150, "kite/c.png": 50}


@pytest.fixture
def root(tmp_path):
    for name, value in VALUES.items():
        path = tmp_path / "birds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (value, 0, 0)).save(path)
    (tmp_path / "birds" / "empty").mkdir()
    return tmp_path / "birds"


def contents(data):
    """(class, red value) of every record."""
    return [(data.classes[data[i].label], np.asarray(data[i].image)[0, 0, 0].item()) for i in range(len(data))]


def test_a_folder_per_class(root):
    data = ImageFolder(root)
    assert data.classes == ("kite", "wren") and data.ids == ["kite/c.png", "wren/a.png", "wren/deep/b.png"]
    assert contents(data) == [("kite", 50), ("wren", 200), ("wren", 150)]
    assert data.labels_of(0) == [0] and data[0].boxes.shape == (0, 4) and data[0].masks is None
    assert ImageFolder(root, classes=["wren", "gull", "kite"]).labels_of(0) == [2]


def test_wrong_folders_are_named(root, tmp_path):
    with pytest.raises(InputError, match=r"(?s)nowhere' is not a folder. Expected this layout:.*FOLDER/sparrow"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="empty' has no folder with images in it"):
        ImageFolder(root / "empty")
    with pytest.raises(InputError, match=r"is named like no class: .*kite"):
        ImageFolder(root, classes=["wren", "gull"])


def test_torchvision_data_sets(root):
    (root / "empty").rmdir()
    theirs = torchvision.datasets.ImageFolder(root)
    data = LabelledImages(theirs)
    assert contents(data) == [("kite", 50), ("wren", 200), ("wren", 150)] and data.ids == ["0", "1", "2"]
    assert contents(Selection(Subset(theirs, [1, 2])).data) == contents(data)
    assert Selection(Subset(theirs, [2, 0])).indices == [2, 0]


def test_any_sequence_of_pairs(root):
    class Pairs:
        classes = ("dark", "bright")

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return np.full((8, 9, 3), 100 * index, np.uint8), index

    assert contents(LabelledImages(Pairs())) == [("dark", 0), ("bright", 100)]
    assert LabelledImages(Pairs(), classes=["a", "b"]).classes == ("a", "b")
    with pytest.raises(InputError, match=r"'0' is a floating tensor: expected an image\. Leave out the data set's tr"):
        tensors = torchvision.transforms.ToTensor()
        LabelledImages([(tensors(Image.new("RGB", (4, 4))), 0)], classes=["x"])[0]
    with pytest.raises(InputError, match=r"does not name its classes: expected classes=\[...\]"):
        LabelledImages([(None, 0)])
    with pytest.raises(InputError, match=r"element 0 of list is int: expected \(image, label\)"):
        LabelledImages([3], classes=["x"])
    with pytest.raises(InputError, match="expected a data set with a length"):
        LabelledImages(iter([]))


def test_hugging_face_data_sets(root):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["kite", "wren"])})
    rows = {"image": [str(root / name) for name in VALUES], "label": [1, 1, 0]}
    data = LabelledImages(datasets.Dataset.from_dict(rows, features=features))
    assert contents(data) == [("wren", 200), ("wren", 150), ("kite", 50)]
    with pytest.raises(InputError, match=r"has the columns a: expected one named image or img"):
        LabelledImages(datasets.Dataset.from_dict({"a": [1]}))


def test_a_folder_alone_is_guessed_and_told(root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_dataset(str(root)), ImageFolder)
    assert f"the data {root} is taken for imagefolder:{root}" in caplog.text
    assert isinstance(open_dataset(f"imagefolder:{root}"), ImageFolder)
    (tmp_path / "birds.csv").write_text("file,class\nwren/a.png,wren\n")
    assert isinstance(open_dataset(str(root)), BoxFolder) and len(open_dataset(str(tmp_path / "birds.csv"))) == 1
    with pytest.raises(InputError, match="is no data set: expected NAME:PATH"):
        open_dataset(str(root / "kite"))


def test_labels_alone_measure_accuracy(root, make_tiny):
    model = make_tiny(2)
    options = {"class_names": ["kite", "wren"], "protocol": "native", "bootstrap": 0, "progress": False}
    result = camtools.evaluate(model, str(root), "cam", **options)
    found = camtools.explain(model, [str(root / name) for name in ImageFolder(root).ids], class_names=["kite", "wren"])
    right = [exp.name == name.split("/")[0] for exp, name in zip(found, ImageFolder(root).ids, strict=True)]
    assert {name: value.value for name, value in result.metrics["cam"].items()} == {
        "Top-1": pytest.approx(100 * sum(right) / 3),
        "Top-5": 100,
    }


def test_a_context_bank_needs_labels_only(root, make_tiny):
    (root / "empty").rmdir()
    bank = camtools.ContextBank.fit(make_tiny(2), f"imagefolder:{root}", progress=False)
    theirs = camtools.ContextBank.fit(make_tiny(2), torchvision.datasets.ImageFolder(root), progress=False)
    assert repr(bank) == repr(theirs)
