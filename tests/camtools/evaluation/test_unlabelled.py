"""Thresholds from images without labels: against OpenCV's contours on each pipeline's maps, and what is refused."""

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import camtools
from camtools import InputError, PipelineError
from camtools.cli import app
from camtools.datasets import open_dataset
from camtools.datasets.scenes import scene_classifier
from camtools.evaluation import calibrated

PRESETS = ("cam", "rcam", "fast", "best")


@pytest.fixture(scope="module")
def images():
    return [record.image for record in open_dataset("scenes:test?n=24")]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    place = tmp_path_factory.mktemp("scenes")
    for number, image in enumerate(images):
        image.save(place / f"{number:02}.png")
    return place


def test_it_is_half_way_to_where_boxes_are_as_large(images):
    model, boxes, own = scene_classifier(), {}, {}
    for name in PRESETS:
        boxes[name], own[name] = [], []
        for found in camtools.explain(model, images, pipeline=name):
            grid = cv2.resize(found.grid_map.double().numpy(), (224, 224), interpolation=cv2.INTER_CUBIC)
            levels = ((grid - grid.min()) / (grid.max() - grid.min()) * 255).astype(np.uint8)
            rows = []
            for level in range(256):
                mask = (levels > level).astype(np.uint8)
                contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
                x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea)) if len(contours) else (0, 0, 0, 0)
                rows.append((x, y, min(x + w, 223), min(y + h, 223)))
            boxes[name].append(rows)
            own[name].append(found.threshold)
    boxes = {name: np.array(rows, float) for name, rows in boxes.items()}
    each = np.arange(len(images))
    levels = {name: (np.array(values, np.float32) * np.float32(255)).astype(int) for name, values in own.items()}
    others = np.stack([boxes[name][each, levels[name]] for name in PRESETS[1:]])
    agreed = np.sort(others, 0)[1]

    def areas(box):
        return np.log((box[..., 2] - box[..., 0] + 1) * (box[..., 3] - box[..., 1] + 1))

    lower = len(images) // 2 - 1  # of an even number the lower one of the two in the middle
    gaps = np.abs(np.sort(areas(boxes["cam"]), 0)[lower] - np.sort(areas(agreed))[lower])
    found = camtools.calibrate(model, images, "cam")
    assert (found.images, found.own) == (24, pytest.approx(0.2, abs=1 / 255))
    assert gaps[round(found.matching * 255)] <= gaps[1:-1].min() + 0.05  # float32 there
    assert found.threshold == pytest.approx((found.own + found.matching) / 2)


def test_the_file_is_what_explain_reads(folder, tmp_path):
    file = tmp_path / "threshold.json"
    arguments = [
        "calibrate",
        str(folder),
        "--model",
        "scenes",
        "--pipeline",
        "rcam",
        "--out",
        str(file),
        "--limit",
        "20",
    ]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(file.read_text())
    threshold = told["thresholds"]["rcam"]["unlabelled"]
    assert told["calibration"]["unlabelled"] == 20 and result.stdout.startswith(f"{threshold:.3f}, half-way from ")
    assert calibrated("rcam", file).summary == f"NWC, CAM, MinMax, FixedThreshold({threshold})"
    explained = ["explain", str(folder / "00.png"), "--model", "scenes", "--pipeline", "rcam", "--threshold", str(file)]
    result = CliRunner().invoke(app, [*explained, "--device", "cpu", "--format", "json"])
    assert json.loads(result.stdout)["images"][0]["classes"][0]["threshold"] == pytest.approx(threshold)


def test_images_that_cannot_be_read_are_named(folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    arguments = ["calibrate", str(folder), str(broken), "--model", "scenes", "--out", str(tmp_path / "t.json")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 1 and f"Error: {broken}: " in result.stderr and (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pipeline": "rcam+crf"}, PipelineError, r"rcam\+crf looks at the image's pixels"),
        ({"limit": 19}, InputError, "19 images could be read: expected at least 20"),
        ({"limit": 0}, InputError, "limit=0: expected a whole number of at least 1"),
        ({"out": 5}, InputError, "out=5: expected a path"),
        ({"crop": "some"}, InputError, "crop='some': expected one of"),
    ],
)
def test_refusals(images, arguments, error, message):
    with pytest.raises(error, match=message):
        camtools.calibrate(scene_classifier(), images, **arguments)


def test_evenly_spaced(images):
    twice = [image for image in images[:20] for _ in range(2)]
    assert camtools.calibrate(scene_classifier(), twice, "cam", limit=20) == camtools.calibrate(
        scene_classifier(), images[:20], "cam"
    )
