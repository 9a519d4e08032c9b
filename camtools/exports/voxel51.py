"""FiftyOne: a persistent data set of that name in its own store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camtools.errors import InputError
from camtools.exports.item import ImageExport, Writer
from camtools.regions import extra

_TOGETHER = 100  # samples that are added at a time


def fiftyone(name: str, class_names: Sequence[str] | None) -> Writer:
    """Make a data set whose samples have the field "camtools": a detection per box, with its mask and score.

    Raises:
        InputError: fiftyone is not installed, or has a data set of that name.
    """
    fo = extra("fiftyone", "fiftyone")
    if fo.dataset_exists(name):
        raise InputError(
            f"FiftyOne has a data set {name!r} already: expected a new name, lest labels of two runs mix. Delete it "
            f"(fiftyone.delete_dataset({name!r})), or name another"
        )
    dataset = fo.Dataset(name, persistent=True)
    try:
        samples = []
        while (item := (yield)) is not None:
            samples.append(_sample(fo, item))
            if len(samples) == _TOGETHER:
                dataset.add_samples(samples)
                samples = []
        dataset.add_samples(samples)
    except BaseException:
        dataset.delete()
        raise


def _sample(fo: Any, item: ImageExport) -> Any:
    if item.source is None:
        raise InputError(f"{item.file} did not come from a file: expected files, as FiftyOne refers to them by path")
    height, width = item.size
    found = []
    for region in item.regions:
        boxes = zip(region.boxes.tolist(), region.box_scores, region.parts(), strict=True)
        for (x0, y0, x1, y1), score, part in boxes:
            shares = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            found.append(fo.Detection(label=region.name, bounding_box=shares, confidence=score, mask=part))
    return fo.Sample(filepath=str(item.source.resolve()), camtools=fo.Detections(detections=found))
