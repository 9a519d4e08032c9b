"""YOLO and VOC: a folder each, by supervision's own writers of one image's labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from camtools.errors import InputError
from camtools.exports.item import ImageExport, Writer
from camtools.files import clear, staging
from camtools.regions import extra


def yolo(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write images/, labels/ and data.yaml, as Ultralytics reads them: boxes, or polygons of segmentations.

    Classes have the model's own numbers, so that several exports (training and validation, say) agree.
    """
    formats, yaml = extra("supervision.dataset.formats.yolo", "export"), extra("yaml", "export")
    names = dict(enumerate(class_names or ()))
    with _new(path) as stage:
        while (item := (yield)) is not None:
            _copy(item, stage / "images")
            detections = _detections(item, masks=item.segmentation is not None)
            lines = formats.detections_to_yolo_annotations(detections, item.size, approximation_percentage=0)
            _write(stage / "labels" / f"{item.name}.txt", "".join(f"{line}\n" for line in lines))
            names.update((region.label, region.name) for region in item.regions)
        every = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
        data = {"train": "images", "val": "images", "nc": len(every), "names": every}
        _write(stage / "data.yaml", yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


def voc(path: Path, class_names: Sequence[str] | None) -> Writer:
    """Write JPEGImages/, Annotations/ and ImageSets/Main/all.txt, as PASCAL VOC lies; segmentations their mask as well.

    `SegmentationClass/` has the masks with VOC's palette, 0 for background and class index + 1 for classes.
    """
    formats = extra("supervision.dataset.formats.pascal_voc", "export")
    with _new(path) as stage:
        listed = []
        while (item := (yield)) is not None:
            _copy(item, stage / "JPEGImages")
            detections, classes = _detections(item, masks=False), {r.label: r.name for r in item.regions}
            text = formats.detections_to_pascal_voc(detections, classes, item.copy_name, (*item.size, 3))
            root = ElementTree.fromstring(text)
            segmented = str(int(item.segmentation is not None))
            known = {"folder": path.name, "source/database": "camtools", "segmented": segmented}
            for place, value in known.items():  # supervision has fixed words there
                root.find(place).text = value  # type: ignore[union-attr]
            if item.segmentation is not None:
                mask = stage / "SegmentationClass" / f"{item.name}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                item.segmentation.to_image().save(mask)
            _write(stage / "Annotations" / f"{item.name}.xml", ElementTree.tostring(root, encoding="unicode"))
            listed.append(f"{item.name}\n")
        _write(stage / "ImageSets" / "Main" / "all.txt", "".join(listed))


def _detections(item: ImageExport, masks: bool) -> Any:
    """Return all classes' boxes as supervision has them, without names."""
    sv = extra("supervision", "export")
    if masks:
        assert item.segmentation is not None
        return item.segmentation.to_supervision()
    boxes = np.concatenate([np.zeros((0, 4)), *(region.boxes.numpy() for region in item.regions)])
    labels = [region.label for region in item.regions for _ in region.boxes]
    return sv.Detections(xyxy=boxes.astype(np.float32), class_id=np.array(labels, int))


def _copy(item: ImageExport, folder: Path) -> None:
    place = folder / item.copy_name
    place.parent.mkdir(parents=True, exist_ok=True)
    if item.source is None:
        item.image.save(place)
        return
    try:
        shutil.copyfile(item.source, place)
    except FileNotFoundError as error:
        raise InputError(
            f"{item.source} is not there, and would be copied into the export: expected the images where they were. "
            "Run from the same folder as before"
        ) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    """Give a hidden folder; what was written to it is in `path` at the end, and nothing after an error.

    Raises:
        InputError: There is something in `path` already, or it cannot be written to.
    """
    if path.exists() and (not path.is_dir() or any(not child.name.startswith(".") for child in path.iterdir())):
        raise InputError(
            f"{path} exists, and is not empty: expected a new folder, lest labels of two runs mix. Remove it, or "
            "name another"
        )
    clear(path)
    try:
        with staging(path) as stage:
            yield stage
            for child in stage.iterdir():
                child.replace(path / child.name)
    except OSError as error:
        raise InputError(
            f"the export to {path} cannot be written: {error.strerror or error}. Make room, or name another folder"
        ) from error
