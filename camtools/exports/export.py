"""`export`, and the formats by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from camtools.errors import InputError
from camtools.exports.folders import voc, yolo
from camtools.exports.item import ImageExport, Writer
from camtools.exports.report import report
from camtools.exports.table import parquet
from camtools.exports.text import coco, csv_rows, label_studio
from camtools.exports.voxel51 import fiftyone
from camtools.regions import extra


class Format(NamedTuple):
    """One format.

    Attributes:
        write: From a place and the model's class names (None if unknown) to the writer.
        usage: How to write it, for messages and help.
        needs: The package that comes with an extra, and the extra; None for neither.
    """

    write: Callable[[Any, Sequence[str] | None], Writer]
    usage: str
    needs: tuple[str, str] | None = None


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "coco": Format(coco, "coco.json"),
        "csv": Format(csv_rows, "labels.csv"),
        "fiftyone": Format(fiftyone, "fiftyone:NAME", ("fiftyone", "fiftyone")),
        "label-studio": Format(label_studio, "label-studio.json"),
        "parquet": Format(parquet, "results.parquet"),
        "report": Format(report, "report.html"),
        "voc": Format(voc, "voc:DIR", ("supervision", "export")),
        "yolo": Format(yolo, "yolo:DIR", ("supervision", "export")),
    }
)
"""Every format by its name."""


def parse_target(text: str) -> tuple[str, str]:
    """Return the name of the format and the place: of "FORMAT:PLACE", or of a file whose name says it.

    A file's suffix says it: .csv, .html (the report), .parquet, and .json for COCO, or for Label Studio where the name
    has "label-studio".

    Raises:
        InputError: It says none.
    """
    name, colon, place = text.partition(":")
    if colon and name.lower() in FORMATS:
        if not place:
            raise InputError(f"--export {text!r} has nothing after the colon: expected {FORMATS[name.lower()].usage}")
        return name.lower(), place
    file = PurePosixPath(text.replace(os.sep, "/")).name.lower()
    json = "label-studio" if "label-studio" in file else "coco"
    guessed = {".csv": "csv", ".html": "report", ".json": json, ".parquet": "parquet"}
    suffix = PurePosixPath(file).suffix
    if suffix not in guessed:
        usages = ", ".join(known.usage for known in FORMATS.values())
        raise InputError(f"--export {text!r} names no format: expected {usages}, or FORMAT:PLACE")
    return guessed[suffix], text


class Exports:
    """Writes results in any number of formats as they come; nothing is left of them after an error.

    with Exports(["coco.json", "yolo:birds"]) as exports:
        exports.add(ImageExport("a.jpg", [explanation], "a"))

    Args:
        targets: What to write, as `camtools explain --export` takes them.
        class_names: Names of the model's classes in order; None where they are not known.

    Raises:
        InputError: A format is unknown, lacks its package, or two would be written to one place.
    """

    def __init__(self, targets: Sequence[str], class_names: Sequence[str] | None = None) -> None:
        self.class_names = class_names
        self.targets = [parse_target(target) for target in ([targets] if isinstance(targets, str) else targets)]
        places = [os.path.abspath(place) for _, place in self.targets]  # noqa: PTH100 - one need not exist
        for target, place in zip(targets, places, strict=False):
            if places.count(place) > 1:
                raise InputError(f"--export {target} is given twice: expected every place once")
        for name, _ in self.targets:
            if needs := FORMATS[name].needs:
                extra(*needs)
        self.writers: list[Writer] = []

    def __enter__(self) -> Self:
        try:
            for name, place in self.targets:
                writer = FORMATS[name].write(place if name == "fiftyone" else Path(place), self.class_names)
                next(writer)
                self.writers.append(writer)
        except BaseException:
            self.discard()
            raise
        return self

    def add(self, item: ImageExport) -> None:
        """Write one image's results to all of them."""
        for writer in self.writers:
            writer.send(item)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while kind is None and self.writers:
                with suppress(StopIteration):
                    self.writers.pop(0).send(None)
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop all that has been written, and take nothing more."""
        while self.writers:
            self.writers.pop().close()


def export(
    results: Iterable[Any],
    targets: str | Sequence[str],
    *,
    root: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write results in the formats of annotation tools, trainers and tables.

    Args:
        results: Per image an `Explanation`, a list of them (one per class), or a `Segmentation`; any iterable, such as
            `explainer.stream(...)`, is read once, and nothing is kept of it.
        targets: One or several of "coco.json", "labels.csv", "results.parquet", "label-studio.json", "yolo:DIR",
            "voc:DIR" and "fiftyone:NAME"; or "FORMAT:PLACE", as in "coco:out/train.json".
        root: The folder that file names are relative to; None names images by their file's name alone. Images that did
            not come from files are numbered.
        class_names: Names of the model's classes in order (`Explainer.class_names`), for YOLO's list; None names those
            that occur.

    Raises:
        InputError: A format is unknown or lacks its package, an image lies outside `root`, a file cannot be written,
            or what would be replaced is no single file.
    """
    chosen = [targets] if isinstance(targets, str) else list(targets)
    files: set[str] = set()
    names: set[str] = set()
    with Exports(chosen, class_names) as exports:
        for number, result in enumerate(results, 1):
            per_image = [result] if hasattr(result, "regions") else list(result)
            if per_image:
                file = _relative(per_image[0].source, root, number)
                if file in files:
                    raise InputError(
                        f"two images are named {file!r}: expected every image once. Give root=, the folder of all"
                    )
                files.add(file)
                exports.add(ImageExport(file, per_image, _unique(file, names)))


def _relative(source: str | None, root: str | os.PathLike[str] | None, number: int) -> str:
    if source is None:
        return f"image-{number}"
    if root is None:
        return Path(source).name
    path, folder = Path(source).resolve(), Path(root).resolve()
    if not path.is_relative_to(folder):
        raise InputError(f"{source} does not lie in root={str(root)!r}: expected the folder that holds all images")
    return path.relative_to(folder).as_posix()


def _unique(file: str, taken: set[str]) -> str:
    """Return the name without its suffix, made unlike those before it."""
    path = PurePosixPath(file)
    plain, suffix = str(path.with_name(path.stem or path.name)), path.suffix.lower().replace(".", "-")
    longer = (f"{plain}{suffix}-{n}" for n in count(2))
    names = chain([plain, f"{plain}{suffix}"], longer)
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name
