from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.functional import pil_to_tensor

from camtools import InputError
from camtools.datasets import DATA_SOURCES, WSOL, BoxFolder, DataSource, Record, open_dataset, register_dataset


@pytest.fixture
def birds(tmp_path, draw, write):
    rows = ["file,class,x0,y0,x1,y1"]
    for index in range(5):
        draw(tmp_path / "birds" / f"{index}.png", (6, 4))
        rows.append(f"{index}.png,{'ab'[index % 2]},0,0,3,4")
    write(tmp_path / "birds.csv", *rows, "0.png,b,1,1,2,2")
    write(tmp_path / "names.txt", "b", "a")
    return tmp_path / "birds"


def test_a_specification_opens_the_data_set(birds, tmp_path, write):
    found = open_dataset(f"boxfolder:{birds}")
    assert isinstance(found, BoxFolder) and len(found) == 5
    assert open_dataset(f"BoxFolder:{birds}?classes={tmp_path / 'names.txt'}").classes == ("b", "a")
    write(tmp_path / "meta" / "image_ids.txt", "0.png")
    write(tmp_path / "meta" / "class_labels.txt", "0.png,1")
    wsol = open_dataset(f"wsol:{tmp_path / 'meta'}?images={birds}&squashed=true")
    assert isinstance(wsol, WSOL) and wsol.labels_of(0) == [1]
    assert open_dataset(f"boxfolder:{birds}", target="label")[1][1] == 1


def test_every_source_says_how_to_write_it():
    for name, source in DATA_SOURCES.items():
        assert source.usage.startswith(f"{name}:")
        assert set(source.required) <= set(source.options)
        assert all(f"{key}=" in source.usage for key in source.options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("birds", r"(?s)'birds' is no data set: expected NAME:PATH\?key=value, one of\n.*boxfolder:FOLDER"),
        ("boxfolder", "is no data set"),
        ("bird:x", "is no data set"),
        ("cub:", "has nothing after the colon: expected cub:ROOT"),
        ("cub:x?part=head", r"'part=head' is not an option; expected cub:.* \(options: split, masks\)"),
        ("cub:x?split", "'split' is not an option"),
        ("cub:x?split=test&split=train", "'split=train' is given twice"),
        ("cub:x?masks=maybe", "masks='maybe', expected true or false"),
        ("wsol:x", r"lacks images=\.\.\.: expected wsol:METADATA\?images=FOLDER"),
        ("voc2007:x?split=all", "split='all': expected one of 'train', 'val', 'trainval', 'test'"),
        ("voc2012:x", "PASCAL VOC 2012: no folder VOC2012"),
        ("pets:x", "Oxford-IIIT Pet: no annotations"),
        ("ilsvrc:x", "ILSVRC 2012 validation: 'x' is not a folder"),
        ("openimages30k:x", "OpenImages30k: no folder of the test images"),
        ("coco:x.json?keep_empty=no", "COCO: 'x.json' is not a file"),
    ],
)
def test_wrong_specifications(spec, message):
    with pytest.raises(InputError, match=message):
        open_dataset(spec)


@pytest.mark.parametrize("kind", ["", "boxfolder:", "cub:", "coco:", "imagefolder:"])
def test_names_that_no_file_can_have(kind):
    with pytest.raises(InputError, match=r"the data '.*a' cannot be opened: File name too long"):
        open_dataset(kind + 300 * "a")


def test_a_source_of_ones_own(birds, monkeypatch):
    monkeypatch.setattr("camtools.datasets.spec.DATA_SOURCES", dict(DATA_SOURCES))

    def build(what, *, n, transform, target):
        assert what == "test"
        return Subset(BoxFolder(birds, transform=transform, target=target), range(n))

    register_dataset("some", DataSource(build, "some:test?n=2", {"n": int}))
    assert len(open_dataset("some:test?n=3")) == 3
    with pytest.raises(InputError, match=r"'some:test\?n=x': n='x', expected a whole number"):
        open_dataset("some:test?n=x")
    with pytest.raises(InputError, match="there is a data set 'some' already"):
        register_dataset("some", DataSource(build, "some:test"))
    with pytest.raises(InputError, match="'So me': expected a name of lower-case letters"):
        register_dataset("So me", DataSource(build, "x"))


def test_subsets_pickles_and_workers(birds):
    found = BoxFolder(birds)
    part = Subset(found, range(1, 5, 2))
    assert [record.id for record in part] == ["1.png", "3.png"]
    again = pickle.loads(pickle.dumps(found))
    assert again.ids == found.ids and torch.equal(again[0].boxes, found[0].boxes)
    loader = DataLoader(found, batch_size=2, num_workers=1, collate_fn=list)
    records = [record for batch in loader for record in batch]
    assert [record.id for record in records] == found.ids and isinstance(records[0], Record)


def test_images_and_targets_for_training(birds):
    labels = DataLoader(BoxFolder(birds, transform=pil_to_tensor, target="label"), batch_size=5)
    images, classes = next(iter(labels))
    assert images.shape == (5, 3, 4, 6) and classes.tolist() == [0, 1, 0, 1, 0]
    both = BoxFolder(birds, transform=pil_to_tensor, target="labels")
    assert both[0][1].tolist() == [1, 1] and both[1][1].tolist() == [0, 1]
    with pytest.raises(InputError, match="a transform would part the image from its boxes"):
        BoxFolder(birds, transform=pil_to_tensor)
    with pytest.raises(IndexError, match="index 5: BoxFolder has 5 images"):
        both[5]


def test_a_broken_image_breaks_its_own_record_only(birds):
    (birds / "2.png").write_bytes(b"")
    found = BoxFolder(birds)
    assert found[1].id == "1.png" and found.labels_of(2) == [0]
    with pytest.raises(InputError, match=r"2\.png'\) is an empty file"):
        found[2]
