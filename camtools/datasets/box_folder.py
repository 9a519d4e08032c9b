"""A folder of images with a CSV file of boxes."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camtools.classes.names import resolve_target
from camtools.datasets.base import ListedDataset, TargetKind
from camtools.datasets.images import fit_boxes, read_annotated
from camtools.datasets.lists import FolderLayout, class_names, folder, read_table, relative_name, to_box, to_int
from camtools.datasets.record import Record
from camtools.errors import InputError, TargetError

_LAYOUT = FolderLayout(
    "BoxFolder",
    """
FOLDER/                     images, in sub-folders as you like
FOLDER.csv                  file,class,x0,y0,x1,y1,width,height
                            birds/1.jpg,sparrow,69.0,57.0,268.0,198.0,320,223
""",
    "your own annotation: one row a box, pixels, x1 and y1 the first column and row outside; or file,class alone",
)
_NEEDED, _OPTIONAL = ("file", "class"), ("x0", "y0", "x1", "y1", "width", "height")
_NO_BOX = (math.nan,) * 4


class BoxFolder(ListedDataset):
    """Any folder of images, and a CSV file with the header `file,class,x0,y0,x1,y1,width,height`.

    A row is a box: the image's path relative to the folder, its class, the box in pixels (half-open: x1 and y1 are
    outside), and the size of the image that it was drawn on. Rows of one file make one record, records come in the
    order of their first rows. Columns may stand in any order; width and height may be left out or empty. Four empty box
    fields, or no columns for them (`file,class` alone): an object without a box. An image of another size than stated
    has its boxes scaled if the aspect ratio is the same up to rounding, and is refused otherwise. Images are shown
    upright, as EXIF says, unless the stated size says otherwise.

    Args:
        root: The folder; or the CSV file, which then names the folder (without .csv).
        csv: The CSV file, where it is not `root`.csv beside the folder.
        classes: The class names in order, a file of them, or "imagenet" (1,000 names in the order of the sorted wnids).
            The column is then read as `resolve_target` reads a class: a name, an index, or (ImageNet's)
            a wnid. Where left out: a column of nothing but whole numbers holds the indices, and classes are "0" to the
            largest; otherwise classes are the sorted names that occur, so give them where a split lacks some.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: The folder or the file is missing, has another header, or a row is wrong (the message names it).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        csv: str | os.PathLike[str] | None = None,
        *,
        classes: str | os.PathLike[str] | Iterable[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: TargetKind = "record",
    ) -> None:
        base = folder(root)
        if csv is None and base.suffix.lower() == ".csv" and not base.is_dir():
            base, table = base.with_suffix(""), base
        else:
            table = base.parent / f"{base.name}.csv" if csv is None else folder(csv)
        if not base.is_dir():
            raise _LAYOUT.error(f"{str(base)!r} is not a folder")
        table = _LAYOUT.first([table], "table")
        images: dict[str, int] = {}
        sizes: list[tuple[int, int] | None] = []
        first_line: dict[str, int] = {}  # of every class
        owners, labels, boxes = array("q"), [], array("d")  # a row each, in the file's order
        for fields, line in read_table(table, _NEEDED, _OPTIONAL):
            name, label, box, size = _read_row(fields, f"{table}, line {line}")
            first_line.setdefault(label, line)
            image = images.setdefault(name, len(images))
            if image == len(sizes):
                sizes.append(size)
            elif sizes[image] != size:
                earlier = _by(sizes[image])
                raise InputError(f"{table}, line {line}: {name!r} is {_by(size)}, but {earlier} in an earlier row")
            owners.append(image)
            labels.append(label)
            boxes.extend(box)
        indices, names = _number(first_line, None if classes is None else class_names(classes), table)
        super().__init__(images, names, transform, target)
        self._root = base
        self._sizes = sizes
        order = np.argsort(owners, kind="stable")
        self._labels = np.array([indices[label] for label in labels], dtype=np.int64)[order]
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)[order]
        self._ends = np.bincount(owners).cumsum()  # of the images' rows

    def labels_of(self, index: int) -> list[int]:
        """Return the classes of the objects of `record(index)`, see `ListedDataset`."""
        return self._labels[self._rows(index)].tolist()

    def record(self, index: int) -> Record:
        """Return one record, see `RecordDataset`."""
        name, size = self.ids[index], self._sizes[index]
        path = self._root / name
        image = read_annotated(path, size, upright=True)
        labels, boxes = torch.tensor(self._labels[self._rows(index)]), torch.tensor(self._boxes[self._rows(index)])
        return Record(image, labels, fit_boxes(boxes, size, image, path), None, None, name)

    def _rows(self, index: int) -> slice:
        return slice(self._ends[index - 1] if index else 0, self._ends[index])


def _read_row(fields: Sequence[str], place: str) -> tuple[str, str, tuple[float, ...], tuple[int, int] | None]:
    """Return the image's name, the class as written, the box and the stated (width, height)."""
    name, label, *box, width, height = (field.strip() for field in fields)
    if not label:
        raise InputError(f"{place}: the class is empty, expected a name or an index")
    size = None
    if width or height:
        size = (to_int(width, "width", place, 1), to_int(height, "height", place, 1))
    return relative_name(name, place), label, to_box(box, place) if any(box) else _NO_BOX, size


def _number(
    first_line: dict[str, int], known: tuple[str, ...] | None, table: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the index of every class as written, and the names of all classes."""
    numbers = all(label.isdecimal() for label in first_line)
    if known is None:
        if numbers:
            last = max(map(int, first_line), default=0)
            return {label: int(label) for label in first_line}, tuple(str(index) for index in range(last + 1))
        names = tuple(sorted(first_line))
        return {name: index for index, name in enumerate(names)}, names
    indices = {}
    for label, line in first_line.items():
        try:
            indices[label] = resolve_target(int(label) if numbers else label, known, listed=True)
        except TargetError as error:
            raise InputError(f"{table}, line {line}: {error}") from error
    return indices, known


def _by(size: tuple[int, int] | None) -> str:
    return "of no stated size" if size is None else f"{size[0]} x {size[1]}"
