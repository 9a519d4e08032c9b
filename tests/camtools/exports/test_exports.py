"""Every format is read back by a reader that is not ours."""

import csv
import json
import os
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

import camtools
from camtools import InputError
from camtools.datasets import BoxFolder
from camtools.exports import Exports, ImageExport, export, results_frame

sv = pytest.importorskip("supervision")
FILES = ("a/same.png", "b/same.png", "b/same.jpg", "héron & œuf, 鷺.png", "blank.png")  # of conftest.py
NAMES = ("red kite", "wren, Zaunkönig", "鷺 <&>")


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def boxes_of(per_image):
    """(label, x0, y0, x1, y1) of all boxes of an image, in order."""
    return [(exp.label, *box) for exp in per_image for box in exp.boxes.tolist()]


def test_the_images_have_what_is_tested(found, segmented):
    counts = dict(zip(FILES, map(len, map(boxes_of, found)), strict=True))
    assert counts["blank.png"] == 0 and min(counts[name] for name in FILES[:4]) >= 2
    assert all(len({exp.label for exp in per_image}) == 2 for per_image in found)
    assert max(len(seg.regions) for seg in segmented) == 3


# COCO -----------------------------------------------------------------------------------------------------------------


def test_coco_is_read_by_pycocotools(found, folder, tmp_path, capsys):
    export(found, str(tmp_path / "coco.json"), root=folder)
    coco = COCO(str(tmp_path / "coco.json"))
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == list(FILES)
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert names == {exp.label + 1: exp.name for per_image in found for exp in per_image}
    for image, per_image in zip(images, found, strict=True):
        assert (image["height"], image["width"]) == per_image[0].size
        assert Image.open(folder / image["file_name"]).size == (image["width"], image["height"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        there = [(a["category_id"] - 1, *a["bbox"]) for a in annotations]
        assert there == [(exp.label, *box) for exp in per_image for box in exp.xywh.tolist()]
        scores = [score for exp in per_image for score in exp.box_scores.tolist()]
        assert [a["score"] for a in annotations] == pytest.approx(scores)
        parts = [part for exp in per_image for part in exp.regions[0].parts()]
        for annotation, part in zip(annotations, parts, strict=True):
            mask, (x, y, w, h) = coco.annToMask(annotation).astype(bool), annotation["bbox"]
            assert annotation["area"] == mask.sum() == part.sum()
            assert np.array_equal(mask[y : y + h, x : x + w], part)


def test_coco_is_read_by_supervision(found, folder, tmp_path):
    export(found, str(tmp_path / "coco.json"), root=folder)
    data = sv.DetectionDataset.from_coco(str(folder), str(tmp_path / "coco.json"))
    assert len(data) == len(FILES)
    for path, _, detections in data:
        per_image = found[FILES.index(os.path.relpath(path, folder.resolve()))]
        assert [tuple(box) for box in detections.xyxy.tolist()] == [box[1:] for box in boxes_of(per_image)]


def test_segmentations_are_coco_too(segmented, folder, tmp_path, capsys):
    export(segmented, str(tmp_path / "coco.json"), root=folder)
    coco = COCO(str(tmp_path / "coco.json"))
    for image, seg in zip(coco.loadImgs(coco.getImgIds()), segmented, strict=True):
        together = np.zeros(seg.size, int)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            together[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
        small = (together == 0) & (seg.mask.numpy() > 0)  # parts of under a hundredth of the largest have no box
        assert small.mean() < 0.01 and np.array_equal(together[~small], seg.mask.numpy()[~small])


# YOLO and VOC ---------------------------------------------------------------------------------------------------------


def test_yolo_is_read_by_supervision(found, folder, tmp_path):
    out = tmp_path / "yolo"
    export(found, f"yolo:{out}", root=folder, class_names=NAMES)
    assert yaml.safe_load((out / "data.yaml").read_text("utf-8"))["names"] == list(NAMES)
    stems = ("a/same", "b/same", "b/same-jpg", "héron & œuf, 鷺", "blank")
    for name, stem, per_image in zip(FILES, stems, found, strict=True):
        image = out / "images" / f"{stem}{Path(name).suffix}"
        assert image.read_bytes() == (folder / name).read_bytes()
        place = (out / "images" / stem).parent.relative_to(out / "images")
        data = sv.DetectionDataset.from_yolo(
            str(out / "images" / place), str(out / "labels" / place), str(out / "data.yaml")
        )
        detections = data.annotations[str(image)]
        there = [
            (label, *box) for label, box in zip(detections.class_id, detections.xyxy.round(2).tolist(), strict=True)
        ]
        assert np.array(there).reshape(-1, 5) == pytest.approx(np.array(boxes_of(per_image)).reshape(-1, 5), abs=0.01)


def test_yolo_of_segmentations_has_polygons(segmented, folder, tmp_path):
    export(segmented, f"yolo:{tmp_path / 'yolo'}", root=folder, class_names=NAMES)
    lines = (tmp_path / "yolo" / "labels" / "a" / "same.txt").read_text().splitlines()
    labels = [region.label for region in segmented[0].regions for _ in region.boxes]
    assert sorted(int(line.split()[0]) for line in lines) == sorted(labels)
    assert max(len(line.split()) for line in lines) > 5
    assert all(0 <= float(share) <= 1 for line in lines for share in line.split()[1:])


def test_yolo_without_class_names_numbers_what_occurs(found, folder, tmp_path):
    export(found[:1], f"yolo:{tmp_path / 'yolo'}", root=folder)
    names = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text("utf-8"))["names"]
    there = {exp.label: exp.name for exp in found[0]}
    assert names == [there.get(label, str(label)) for label in range(max(there) + 1)]


def test_voc_is_read_by_elementtree(found, folder, tmp_path):
    out = tmp_path / "voc"
    export(found, f"voc:{out}", root=folder)
    listed = (out / "ImageSets" / "Main" / "all.txt").read_text("utf-8").splitlines()
    assert listed == ["a/same", "b/same", "b/same-jpg", "héron & œuf, 鷺", "blank"]
    for stem, name, per_image in zip(listed, FILES, found, strict=True):
        root = ElementTree.parse(out / "Annotations" / f"{stem}.xml").getroot()
        assert (out / "JPEGImages" / root.findtext("filename")).read_bytes() == (folder / name).read_bytes()
        assert (root.findtext("folder"), root.findtext("source/database")) == ("voc", "camtools")
        size = tuple(int(root.findtext(f"size/{side}")) for side in ("height", "width"))
        assert size == per_image[0].size
        corners = ("xmin", "ymin", "xmax", "ymax")  # VOC's start at 1, and the last is in the box
        there = [
            (o.findtext("name"), *(int(o.findtext(f"bndbox/{corner}")) - (corner[1:] == "min") for corner in corners))
            for o in root.findall("object")
        ]
        assert there == [(NAMES[label], *box) for label, *box in boxes_of(per_image)]


def test_voc_of_segmentations_has_their_masks(segmented, folder, tmp_path):
    export(segmented, f"voc:{tmp_path / 'voc'}", root=folder)
    mask = Image.open(tmp_path / "voc" / "SegmentationClass" / "a" / "same.png")
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), segmented[0].mask.numpy())
    root = ElementTree.parse(tmp_path / "voc" / "Annotations" / "a" / "same.xml").getroot()
    assert root.findtext("segmented") == "1"


def test_a_folder_that_holds_something_is_left_alone(found, folder, tmp_path):
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "mine.txt").touch()
    with pytest.raises(InputError, match="yolo exists, and is not empty: expected a new folder"):
        export(found, [f"yolo:{tmp_path / 'yolo'}", str(tmp_path / "labels.csv")], root=folder)
    assert inside(tmp_path) == ["yolo"] and inside(tmp_path / "yolo") == ["mine.txt"]


def test_images_that_have_moved_are_named(model, options, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "image.png")
    exp = camtools.explain(model, str(tmp_path / "image.png"), **options)
    (tmp_path / "image.png").unlink()
    with pytest.raises(InputError, match=r"image\.png is not there, and would be copied"):
        export([exp], f"voc:{tmp_path / 'voc'}")
    assert inside(tmp_path) == []


# Tables ---------------------------------------------------------------------------------------------------------------


def test_csv_is_read_by_the_csv_module_and_as_a_data_set(found, folder, tmp_path):
    table = tmp_path / "labels.csv"
    export(found, str(table), root=folder)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    there = [(row["file"], row["class"], row["x0"], row["y1"]) for row in rows]
    expected = [
        (name, exp.name, *(map(str, (box[0], box[3])) if box else ("", "")))
        for name, per_image in zip(FILES, found, strict=True)
        for exp in per_image
        for box in exp.boxes.tolist() or [None]
    ]
    assert there == expected and {row["height"] for row in rows if row["file"] == "a/same.png"} == {"40"}
    data = BoxFolder(folder, table, classes=NAMES)
    for record, per_image in zip((data.record(i) for i in range(len(data))), found, strict=True):
        objects = list(zip(record.labels.tolist(), map(tuple, record.boxes.tolist()), strict=True))
        assert [(label, *box) for label, box in objects if box[0] == box[0]] == boxes_of(per_image)
    assert data.ids == list(FILES)


def test_parquet_is_read_by_pyarrow(found, folder, tmp_path):
    export(found, str(tmp_path / "results.parquet"), root=folder)
    rows = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    flat = [(name, exp) for name, per_image in zip(FILES, found, strict=True) for exp in per_image]
    assert [row["file"] for row in rows] == [name for name, _ in flat]
    for row, (_, exp) in zip(rows, flat, strict=True):
        assert (row["height"], row["width"]) == exp.size
        assert (row["label"], row["name"], row["boxes"]) == (exp.label, exp.name, exp.boxes.tolist())
        assert [row[c] for c in ("x0", "y0", "x1", "y1")] == (exp.box.tolist() if len(exp.boxes) else [None] * 4)
        assert (row["pixels"], row["exact"], row["pipeline"]) == (exp.mask.sum(), True, "cam")
        assert (row["score"], row["threshold"]) == pytest.approx((exp.score, exp.threshold))


def test_frames_in_memory(found, segmented):
    pandas = pytest.importorskip("pandas")
    frame = results_frame(found)
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 2 * len(FILES)
    assert frame["file"][0] == found[0][0].source and frame["x0"].isna().sum() == 2  # both of the blank image
    assert frame.groupby("label")["pixels"].sum().to_dict() == {
        label: sum(int(e.mask.sum()) for p in found for e in p if e.label == label)
        for label in {e.label for p in found for e in p}
    }
    table = results_frame(iter(segmented), to="arrow")
    assert table["label"].to_pylist() == [0, 1, 2] * len(FILES)
    assert results_frame(found[0][0], to="arrow").num_rows == 1
    with pytest.raises(InputError, match="to='numpy': expected 'pandas' or 'arrow'"):
        results_frame(found, to="numpy")


# Label Studio and FiftyOne --------------------------------------------------------------------------------------------


def test_label_studio_tasks(found, segmented, folder, tmp_path):
    export(found, str(tmp_path / "label-studio.json"), root=folder)
    tasks = json.loads((tmp_path / "label-studio.json").read_text("utf-8"))
    assert tasks[0]["data"] == {"image": "/data/local-files/?d=a/same.png"}
    assert tasks[3]["data"]["image"].endswith("?d=h%C3%A9ron%20%26%20%C5%93uf%2C%20%E9%B7%BA.png")
    for task, per_image in zip(tasks, found, strict=True):
        [prediction] = task["predictions"]
        there = []
        for region in prediction["result"]:
            value, sides = region["value"], (region["original_width"], region["original_height"])
            x, y = value["x"] * sides[0] / 100, value["y"] * sides[1] / 100
            w, h = value["width"] * sides[0] / 100, value["height"] * sides[1] / 100
            there.append((NAMES.index(value["rectanglelabels"][0]), x, y, x + w, y + h))
        assert np.array(there) == pytest.approx(np.array(boxes_of(per_image)))
        assert prediction["score"] == pytest.approx(per_image[0].score)
    export(segmented, f"label-studio:{tmp_path / 'polygons.json'}", root=folder)
    [task, *_] = json.loads((tmp_path / "polygons.json").read_text("utf-8"))
    first = task["predictions"][0]["result"][0]
    points = np.array(first["value"]["points"]) * segmented[0].size[::-1] / 100
    assert points == pytest.approx(segmented[0].polygons(tolerance=1)[0][0], abs=1e-3)


def test_label_studios_own_checks(found, segmented, folder, tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    labels = "".join(f'<Label value="{name.replace("&", "&amp;").replace("<", "&lt;")}"/>' for name in NAMES)
    for results, kind in ((found, "Rectangle"), (segmented, "Polygon")):
        config = f'<View><Image name="image" value="$image"/><{kind}Labels name="label" toName="image">{labels}'
        checks = interface.LabelInterface(config + f"</{kind}Labels></View>")
        export(results, str(tmp_path / "label-studio.json"), root=folder)
        for task in json.loads((tmp_path / "label-studio.json").read_text("utf-8")):
            assert checks.validate_task({"data": task["data"]})
            assert task["predictions"] and all(
                checks.validate_prediction(prediction) for prediction in task["predictions"]
            )


class Record(types.SimpleNamespace):
    """What a FiftyOne sample or detection was made with."""


@pytest.fixture
def fiftyone(monkeypatch):
    """A stand-in with the five names that are used: what is built, not that FiftyOne takes it."""
    made = {}

    class Dataset:
        def __init__(self, name, persistent):
            made[name] = self
            self.name, self.persistent, self.samples = name, persistent, []

        def add_samples(self, samples):
            self.samples += samples

        def delete(self):
            del made[self.name]

    names = dict.fromkeys(("Sample", "Detection", "Detections"), Record)
    module = types.SimpleNamespace(Dataset=Dataset, dataset_exists=made.__contains__, **names)
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    return made


def test_fiftyone_samples(fiftyone, found, folder):
    export(found, "fiftyone:birds", root=folder)
    data = fiftyone["birds"]
    assert data.persistent and [sample.filepath for sample in data.samples] == [str(folder / name) for name in FILES]
    for sample, per_image in zip(data.samples, found, strict=True):
        height, width = per_image[0].size
        there = [
            (NAMES.index(d.label), x * width, y * height, (x + w) * width, (y + h) * height)
            for d in sample.camtools.detections
            for x, y, w, h in [d.bounding_box]
        ]
        assert np.array(there) == pytest.approx(np.array(boxes_of(per_image)))
    [first, *_] = data.samples[0].camtools.detections
    x0, y0, x1, y1 = found[0][0].box.tolist()
    assert first.mask.shape == (y1 - y0, x1 - x0) and first.confidence == float(found[0][0].box_scores[0])
    with pytest.raises(InputError, match="FiftyOne has a data set 'birds' already"):
        export(found, "fiftyone:birds", root=folder)


def test_an_error_leaves_no_fiftyone_data_set(fiftyone, model, options):
    exp = camtools.explain(model, np.zeros((40, 40, 3), np.uint8), **options)
    with pytest.raises(InputError, match="image-1 did not come from a file"):
        export([exp], "fiftyone:birds")
    assert fiftyone == {}


# All of them ----------------------------------------------------------------------------------------------------------


def test_several_at_once_and_nothing_after_an_error(found, folder, tmp_path):
    names = ["coco.json", "labels.csv", "results.parquet", "label-studio.json"]
    targets = [*(str(tmp_path / name) for name in names), f"yolo:{tmp_path / 'yolo'}", f"voc:{tmp_path / 'voc'}"]

    def broken():
        yield from found[:2]
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        export(broken(), targets, root=folder)
    assert inside(tmp_path) == []
    export(iter(found), targets, root=folder)
    assert inside(tmp_path) == sorted([*names, "yolo", "voc"])


def test_results_are_not_kept(found, folder, tmp_path):
    import weakref

    alive = []

    def stream():
        for per_image in found:
            copies = [exp.cpu() for exp in per_image]
            alive.append(weakref.ref(copies[0]))
            yield copies
            del copies
            assert sum(ref() is not None for ref in alive) <= 2

    targets = [str(tmp_path / "coco.json"), str(tmp_path / "results.parquet"), f"yolo:{tmp_path / 'yolo'}"]
    export(stream(), targets, root=folder)


def test_images_without_a_file_are_numbered(model, options, tmp_path):
    arrays = [np.full((40, 40, 3), value, np.uint8) for value in (100, 200)]
    export(camtools.explain(model, arrays, **options), [f"yolo:{tmp_path / 'y'}", str(tmp_path / "coco.json")])
    assert inside(tmp_path / "y" / "images") == ["image-1.png", "image-2.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "y" / "images" / "image-2.png")), arrays[1])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("results.txt", "'results.txt' names no format: expected coco.json, labels.csv, fiftyone:NAME"),
        ("yolo:", "'yolo:' has nothing after the colon: expected yolo:DIR"),
    ],
)
def test_targets_that_say_nothing(target, words):
    with pytest.raises(InputError, match=words):
        export([], target)


def test_what_cannot_be_named(found, folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"two images are named 'same\.png'"):
        export(found, str(tmp_path / "coco.json"))
    with pytest.raises(InputError, match=r"same\.png does not lie in root="):
        export(found, str(tmp_path / "coco.json"), root=tmp_path)
    with pytest.raises(InputError, match=r"a\.csv is given twice"):
        Exports([str(tmp_path / "a.csv"), f"csv:{tmp_path / 'a.csv'}"])
    assert inside(tmp_path) == []
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(InputError, match=r'this needs fiftyone, .*: pip install "camtools\[fiftyone\]"'):
        Exports(["fiftyone:birds"])
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r'this needs supervision, .*: pip install "camtools\[export\]"'):
        Exports(["yolo:birds"])


def test_one_image_at_a_time(found, folder, tmp_path):
    with Exports([str(tmp_path / "labels.csv")]) as exports:
        exports.add(ImageExport("somewhere/else.png", found[0], "somewhere/else"))
    assert (tmp_path / "labels.csv").read_text("utf-8").splitlines()[1].startswith("somewhere/else.png,")
