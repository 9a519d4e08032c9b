"""Reading a data set's lists, with errors that name the file and the line, or the folder that was expected."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from camtools import files
from camtools.classes.names import imagenet_names, load_names
from camtools.errors import CamtoolsError, InputError

T = TypeVar("T")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class FolderLayout:
    """How a data set lies on the disk, for the errors of those who pass another folder.

    Attributes:
        name: The data set.
        tree: Its files, as a short indented tree.
        source: Where to get it.
    """

    name: str
    tree: str
    source: str

    def error(self, problem: str) -> InputError:
        """Return the error that says what is wrong, what was expected, and where to get it."""
        return InputError(
            f"{self.name}: {problem}. Expected this layout:\n{self.tree.strip()}\n"
            f"Get it from {self.source}; nothing is downloaded for you"
        )

    def first(self, candidates: Sequence[Path], what: str) -> Path:
        """Return the first of the candidates that exists.

        Raises:
            InputError: None does.
        """
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            raise self.error(f"no {what}: looked for {' or '.join(repr(str(path)) for path in candidates)}")
        return path


def folder(path: str | os.PathLike[str]) -> Path:
    """Return a path with ~ replaced by the home folder; nothing is checked."""
    return Path(path).expanduser()


def read_text(path: Path) -> str:
    """Read a text file; a byte order mark is dropped.

    Raises:
        InputError: It is missing, unreadable or not UTF-8.
    """
    try:
        return files.read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): expected a text file of the data set") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): expected a file of the data set"
        ) from error


def read_rows(
    path: Path, counts: Sequence[int], separator: str | None = None, comment: str = ""
) -> Iterator[list[str]]:
    """Read a list without a header; blank lines are skipped.

    Args:
        path: The file.
        counts: How many fields a line may have.
        separator: Between fields; None for white space.
        comment: Lines that begin with it are skipped.

    Yields:
        The line's fields, and last the place ("FILE, line 3") for messages.

    Raises:
        InputError: The file cannot be read, or a line has another number of fields.
    """
    expected = " or ".join(map(str, sorted(set(counts))))
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or (comment and line.startswith(comment)):
            continue
        # where white space separates, the last field takes what is left
        fields = line.strip().split(separator, -1 if separator else max(counts) - 1)
        if len(fields) not in counts:
            kind = "separated by spaces" if separator is None else f"separated by {separator!r}"
            raise InputError(
                f"{path}, line {number}: {line.strip()!r} has {len(fields)} fields, expected {expected}, {kind}"
            )
        yield [field.strip() for field in fields] + [f"{path}, line {number}"]


def read_table(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[list[str], int]]:
    """Read a CSV file with a header; columns may come in any order, others are left out.

    Yields:
        The fields of `needed` and then `optional` ("" where there is no such column), and the line's number.

    Raises:
        InputError: The file cannot be read, has no such header, or a row is shorter than the header.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    header = [name.strip().lower() for name in next(rows, [])]
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path}, line 1: no column {', '.join(map(repr, missing))} in {','.join(header)!r}; expected the header "
            f"{','.join([*needed, *optional])}"
        )
    where = [header.index(name) if name in header else None for name in (*needed, *optional)]
    for row in rows:
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {rows.line_num}: {len(row)} fields, expected {len(header)}: {','.join(header)}"
            )
        yield ["" if i is None else row[i] for i in where], rows.line_num


def to_int(text: str, what: str, place: str, low: int = 0, high: int | None = None) -> int:
    """Return a whole number from `low` to `high`, or raise an InputError that names its place."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        limit = f"{low} or more" if high is None else f"{low} to {high}"
        raise InputError(f"{place}: {what} is {text!r}, expected a whole number, {limit}")
    return value


def to_box(fields: Sequence[str], place: str, sides: bool = False) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 in pixels of x0, y0, x1, y1, or of x, y, width, height where `sides` is True.

    Raises:
        InputError: They are not four numbers, or the box is empty; names the place.
    """
    try:
        x0, y0, x1, y1 = map(float, fields)
    except ValueError as error:
        kind = "x,y,width,height" if sides else "x0,y0,x1,y1"
        raise InputError(f"{place}: the box is {','.join(fields)!r}, expected four numbers, {kind}") from error
    if sides:
        x1, y1 = x0 + x1, y0 + y1
    if not (math.isfinite(x0 + y0 + x1 + y1) and x1 > x0 and y1 > y0):
        raise InputError(f"{place}: the box {x0:g},{y0:g},{x1:g},{y1:g} is empty, expected x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def keyed(rows: Mapping[str, T], keys: Collection[str], path: Path) -> list[T]:
    """Return a list's values in the order of the given keys, or raise an InputError that names one it lacks."""
    for key in keys:
        if key not in rows:
            raise InputError(f"{path} has no line for {key!r}: expected one for every image")
    return [rows[key] for key in keys]


def relative_name(name: str, place: str) -> str:
    """Return an image's name, or raise an InputError if it leads out of the data set's folder."""
    name = name.replace("\\", "/")
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise InputError(f"{place}: the file is {name!r}, expected a path relative to the images' folder")
    return name


def class_names(classes: str | os.PathLike[str] | Iterable[str]) -> tuple[str, ...]:
    """Return class names that a caller gave: themselves, "imagenet" for its 1,000, or a file (`names.load_names`).

    Raises:
        InputError: The file cannot be read, or there are no names.
    """
    if isinstance(classes, str | os.PathLike):
        if str(classes) == "imagenet":
            return imagenet_names()
        try:
            return load_names(folder(classes))
        except CamtoolsError as error:
            raise InputError(f"classes={str(classes)!r}: {error}") from error
    names = tuple(str(name) for name in classes)
    if not names:
        raise InputError("classes is empty: expected the names of the classes in the order of their indices, or None")
    return names
