"""COCO, CSV and Label Studio: one file each, written as images come."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pycocotools import mask as rle

from camtools.exports.item import ImageExport, Writer
from camtools.files import replacing
from camtools.regions import ClassRegions

CSV_COLUMNS = ("file", "class", "label", "score", "x0", "y0", "x1", "y1", "width", "height")
_TOLERANCE = 1.0  # of Label Studio's polygons, pixels


def coco(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write COCO's detection format: an annotation per box, its part of the mask as compressed run lengths, its score.

    `file_name` is the path relative to the root, `category_id` the class index + 1; categories are those that occur.
    """
    categories: dict[int, str] = {}
    with (
        replacing(path) as partial,
        partial.open("w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8") as annotations,
    ):
        file.write('{"info": {"description": "camtools"}, "images": [')
        image_id = annotation_id = 0
        while (item := (yield)) is not None:
            image_id += 1
            height, width = item.size
            entry = {"id": image_id, "file_name": item.file, "width": width, "height": height}
            file.write(_after(image_id) + _dumps(entry))
            for region in item.regions:
                categories[region.label + 1] = region.name
                for annotation in _annotations(region):
                    annotation_id += 1
                    numbers = {"id": annotation_id, "image_id": image_id, "category_id": region.label + 1}
                    annotations.write(_after(annotation_id) + _dumps(numbers | annotation))
        file.write('\n], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        names = [{"id": number, "name": name} for number, name in sorted(categories.items())]
        file.write(f'\n], "categories": {_dumps(names)}}}\n')


def _annotations(region: ClassRegions) -> list[dict[str, Any]]:
    height, width = region.mask.shape
    found = []
    for box, score, part in zip(region.boxes.tolist(), region.box_scores, region.parts(), strict=True):
        x0, y0, x1, y1 = box
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[y0:y1, x0:x1] = part
        encoded = rle.encode(mask)
        segmentation = {"size": [height, width], "counts": encoded["counts"].decode()}
        bbox = [x0, y0, x1 - x0, y1 - y0]
        shape = {"bbox": bbox, "area": int(part.sum()), "segmentation": segmentation, "iscrowd": 0}
        found.append(shape | {"score": score})
    return found


def csv_rows(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write a CSV file with a row per box, which `BoxFolder` reads; an image's class without a box has an empty one."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        while (item := (yield)) is not None:
            height, width = item.size
            for region in item.regions:
                boxes = list(zip(region.boxes.tolist(), region.box_scores, strict=True)) or [([""] * 4, region.score)]
                for box, score in boxes:
                    writer.writerow([item.file, region.name, region.label, f"{score:.6g}", *box, width, height])


def label_studio(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write Label Studio's tasks with predictions: rectangles of explanations, polygons of segmentations.

    Images are found in its local storage, whose document root is the folder that `file` is relative to.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write("[")
        count = 0
        while (item := (yield)) is not None:
            count += 1
            file.write(_after(count) + _dumps(_task(item)))
        file.write("\n]\n")


def _task(item: ImageExport) -> dict[str, Any]:
    height, width = item.size
    percent = np.array([100 / width, 100 / height])
    found: list[dict[str, Any]] = []
    for region in item.regions:
        if item.segmentation is None:
            kind, shapes = "rectanglelabels", [_rectangle(box, percent) for box in region.boxes.tolist()]
            scores = region.box_scores
        else:
            kind = "polygonlabels"
            each = list(zip(region.polygons(_TOLERANCE), region.box_scores, strict=True))
            shapes = [{"points": (ring * percent).tolist(), "closed": True} for rings, _ in each for ring in rings]
            scores = [score for rings, score in each for _ in rings]
        common = {"type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0}
        common |= {"original_width": width, "original_height": height}
        for shape, score in zip(shapes, scores, strict=True):
            found.append(common | {"id": f"{len(found)}", "score": score, "value": shape | {kind: [region.name]}})
    scores = [region.score for region in item.regions]
    prediction = {"model_version": "camtools", "score": max(scores, default=0.0), "result": found}
    return {"data": {"image": f"/data/local-files/?d={quote(item.file)}"}, "predictions": [prediction]}


def _rectangle(box: list[int], percent: Any) -> dict[str, Any]:
    (x, y), (width, height) = box[:2] * percent, np.subtract(box[2:], box[:2]) * percent
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0}


def _after(count: int) -> str:
    return "\n" if count == 1 else ",\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=float)
