"""`--export` of explain and segment: what the run prints is what the files say."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app

NETS = '''
import torch
from torch import nn

def colours():
    """Class k is channel k: logits are the means of red, green and blue."""
    conv, fc = nn.Conv2d(3, 3, 4, stride=4, bias=False), nn.Linear(3, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None] / 16)
        fc.weight.copy_(10 * torch.eye(3))
        fc.bias.zero_()
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    return {"model": model, "mean": 0.0, "std": 1.0, "size": 32, "class_names": ["red", "green", "blue"]}
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    for name, channel in (("pics/a/sieb.png", 0), ("pics/b/sieb.png", 1), ("pics/été.png", 2)):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[8:24, 40:56, channel] = 255
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "pics" / "broken.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command, *args):
    model = ["--model", "nets.py:colours", "--device", "cpu", "--format", "json"]
    return CliRunner().invoke(app, [command, "pics", *map(str, args), *model])


def printed(result):
    """What stdout says: (file, class, box) of every class that has one."""
    document = json.loads(result.stdout)
    return [(image["file"], c["name"], c["box"]) for image in document["images"] for c in image["classes"] if c["box"]]


def as_coco(path):
    coco = json.loads(path.read_text("utf-8"))
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    names = {category["id"]: category["name"] for category in coco["categories"]}
    boxes = [(a, *a["bbox"]) for a in coco["annotations"]]
    return [(files[a["image_id"]], names[a["category_id"]], [x, y, x + w, y + h]) for a, x, y, w, h in boxes]


def test_several_exports_of_one_run(place):
    pytest.importorskip("supervision")
    targets = ["coco.json", "labels.csv", "deep/results.parquet", "yolo:yolo", "voc:voc"]
    result = run("explain", *(word for target in targets for word in ("--export", target)), "--batch-size", 2)
    assert result.exit_code == 1 and "broken.png" in result.stderr  # the others are exported all the same
    boxes = printed(result)
    assert {(file, name) for file, name, _ in boxes} == {
        ("été.png", "blue"),
        ("a/sieb.png", "red"),
        ("b/sieb.png", "green"),
    }
    assert as_coco(place / "coco.json") == boxes
    with (place / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [(r["file"], r["class"], [int(r[c]) for c in ("x0", "y0", "x1", "y1")]) for r in csv.DictReader(file)]
    assert rows == boxes
    assert sorted(p.relative_to(place).as_posix() for p in place.glob("yolo/labels/**/*.txt")) == [
        "yolo/labels/a/sieb.txt",
        "yolo/labels/b/sieb.txt",
        "yolo/labels/été.txt",
    ]
    assert "names:\n- red\n- green\n- blue\n" in (place / "yolo" / "data.yaml").read_text()
    assert (place / "voc" / "Annotations" / "b" / "sieb.xml").exists() and (place / "deep" / "results.parquet").exists()


def test_the_report_is_an_export_too(place):
    run("explain", "--report", "page.html", "--out", "out", "--export", "coco.json")
    assert (place / "page.html").read_text("utf-8").count('class="card"') == 3
    CliRunner().invoke(app, ["export-results", "out", "later.html"])
    assert (place / "later.html").read_bytes() == (place / "page.html").read_bytes()


def test_segment_exports_too(place):
    pytest.importorskip("supervision")
    result = run("segment", "--export", "coco.json", "--export", "voc:voc")
    assert as_coco(place / "coco.json") == printed(result) and len(printed(result)) >= 3
    assert np.asarray(Image.open(place / "voc" / "SegmentationClass" / "b" / "sieb.png"))[16, 48] == 2


def test_an_interrupted_run_leaves_no_exports(place, interrupt):
    interrupt(2)
    before = sorted(place.rglob("*"))
    assert run("explain", "--export", "coco.json", "--export", "voc:voc", "--batch-size", 1).exit_code == 130
    assert sorted(place.rglob("*")) == before


def test_wrong_targets_are_told_before_the_model_is_loaded(place):
    result = run("explain", "--export", "coco.txt", "--weights", "nowhere.pth")
    assert result.exit_code == 2 and "'coco.txt' names no format" in result.stderr
    result = run("explain", "--export", "coco.json", "--out", "out", "--resume")
    assert result.exit_code == 2 and "export-results OUT" in result.stderr


def test_saved_runs_export_what_the_run_itself_exports(place):
    pytest.importorskip("supervision")
    run("explain", "--top-k", 2, "--out", "out", "--export", "coco.json", "--export", "yolo:yolo")
    run("explain", "--top-k", 2, "--out", "out", "--resume")
    result = CliRunner().invoke(app, ["export-results", "out", "later.json", "yolo:later", "labels.csv"])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "3 images exported: later.json, yolo:later, labels.csv\n"
    assert (place / "later.json").read_bytes() == (place / "coco.json").read_bytes()
    there = {p.relative_to(place / "yolo"): p.read_bytes() for p in place.glob("yolo/**/*") if p.is_file()}
    assert there == {p.relative_to(place / "later"): p.read_bytes() for p in place.glob("later/**/*") if p.is_file()}
    assert len(there) == 3 + 3 + 1


def test_what_cannot_be_exported_afterwards_is_told(place):
    def later(*args):
        result = CliRunner().invoke(app, ["export-results", *args])
        assert result.exit_code == 2
        return result.stderr

    assert "pics holds no results: expected what was --out of camtools explain" in later("pics", "coco.json")
    run("segment", "--out", "out")
    assert "results of camtools segment" in later("out", "coco.json")
