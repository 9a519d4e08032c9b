"""Data sets by one line of text, as the command line takes them: `NAME:PATH?key=value&key=value`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from camtools.datasets.base import RecordDataset, TargetKind
from camtools.datasets.box_folder import BoxFolder
from camtools.datasets.coco import COCO
from camtools.datasets.cub import CUB
from camtools.datasets.ilsvrc import ILSVRC
from camtools.datasets.labelled import ImageFolder
from camtools.datasets.lists import folder
from camtools.datasets.openimages import OpenImages30k
from camtools.datasets.pets import OxfordPets
from camtools.datasets.scenes.dataset import Scenes
from camtools.datasets.voc import VOC
from camtools.datasets.wsol import WSOL
from camtools.errors import InputError


def _flag(text: str) -> bool:
    """Read yes or no."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("true or false")
    return words[text.lower()]


def _range(text: str) -> tuple[int, int]:
    """Read a whole number, or two with a hyphen between."""
    low, hyphen, high = text.partition("-")
    try:
        return int(low), int(high if hyphen else low)
    except ValueError:
        raise ValueError("a whole number, or a range such as 1-3") from None


@dataclass(frozen=True)
class DataSource:
    """One name that specifications may begin with.

    Attributes:
        build: Makes the data set: called with what follows the colon, the options, `transform` and `target`.
        usage: How to write it, for messages and help.
        options: What may follow the question mark: every key with the function that reads its value; it raises
            ValueError, which says what it expects, for a value it does not know.
        fixed: Further keyword arguments for `build`.
        required: Options that must be given.
    """

    build: Callable[..., RecordDataset]
    usage: str
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}
_VOC_OPTIONS = {"split": str, "task": str}
DATA_SOURCES: dict[str, DataSource] = {
    "boxfolder": DataSource(BoxFolder, "boxfolder:FOLDER?csv=FILE&classes=FILE|imagenet", {"csv": str, "classes": str}),
    "coco": DataSource(COCO, "coco:FILE.json?images=FOLDER&keep_empty=false", {"images": str, "keep_empty": _flag}),
    "cub": DataSource(CUB, "cub:ROOT?split=test&masks=false", {"split": str, "masks": _flag}),
    "ilsvrc": DataSource(ILSVRC, "ilsvrc:ROOT?truth=FILE|FOLDER", {"truth": str}),
    "imagefolder": DataSource(ImageFolder, "imagefolder:FOLDER?classes=FILE|imagenet", {"classes": str}),
    "openimages30k": DataSource(
        OpenImages30k,
        "openimages30k:ROOT?split=test&metadata=FOLDER&classes=FILE",
        {"split": str, "metadata": str, "classes": str},
    ),
    "pets": DataSource(OxfordPets, "pets:ROOT?split=test&border=ignore", {"split": str, "border": str}),
    "scenes": DataSource(
        Scenes,
        "scenes:test?n=200&seed=0&size=128&objects=1-3&mixed=true",
        {"n": int, "seed": int, "size": int, "objects": _range, "mixed": _flag},
    ),
    "voc2007": DataSource(VOC, "voc2007:ROOT?split=test&task=detection", _VOC_OPTIONS, {"year": 2007}),
    "voc2012": DataSource(VOC, "voc2012:ROOT?split=val&task=segmentation", _VOC_OPTIONS, {"year": 2012}),
    "wsol": DataSource(
        WSOL,
        "wsol:METADATA?images=FOLDER&masks=FOLDER&classes=FILE&squashed=true",
        {"images": str, "masks": str, "classes": str, "squashed": _flag},
        required=("images",),
    ),
}


def register_dataset(name: str, source: DataSource) -> None:
    """Add a name that `open_dataset` knows.

    Raises:
        InputError: The name is taken, or is not lower-case letters, digits, - and _.
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum() or name != name.lower():
        raise InputError(f"{name!r}: expected a name of lower-case letters, digits, - and _")
    if name in DATA_SOURCES:
        raise InputError(f"there is a data set {name!r} already ({DATA_SOURCES[name].usage}): expected another name")
    DATA_SOURCES[name] = source


def _guess(spec: str) -> str:
    """Return a specification with its name where a folder or file stands alone; else itself."""
    place, question, options = spec.partition("?")
    path = folder(place)
    if place.partition(":")[0].lower() in DATA_SOURCES and ":" in place:
        return spec
    name = {".csv": "boxfolder", ".json": "coco"}.get(path.suffix.lower()) if path.is_file() else None
    if path.is_dir():
        boxes = path.parent / f"{path.name}.csv"
        name = "boxfolder" if boxes.exists() else "imagefolder" if any(p.is_dir() for p in path.iterdir()) else None
    return f"{name}:{place}{question}{options}" if name else spec


@lru_cache
def _say(spec: str, guessed: str) -> None:
    """Say what a folder or file is taken for, once."""
    logging.getLogger(__name__).warning("the data %s is taken for %s", spec, guessed)


def open_dataset(
    spec: str, *, transform: Callable[[Any], Any] | None = None, target: TargetKind = "record"
) -> RecordDataset:
    """Open a data set from its specification.

    Args:
        spec: `NAME:PATH?key=value&key=value`, such as "boxfolder:data/birds", "voc2012:data?task=segmentation" or
            "wsol:metadata/CUB/test?images=CUB/images"; the names and options are in `DATA_SOURCES`. Nothing is decoded:
            paths may hold anything but "?", values anything but "&". A folder, or a .csv or .json file, may stand
            alone: what it is taken for is logged.
        transform: See `RecordDataset`.
        target: See `RecordDataset`.

    Raises:
        InputError: There is no such name or option, or the data set cannot be opened.
    """
    name, colon, rest = (guessed := _guess(spec)).partition(":")
    if guessed != spec:
        _say(spec, guessed)
    source = DATA_SOURCES.get(name.strip().lower())
    if source is None or not colon:
        usages = "\n".join(f"  {known.usage}" for known in DATA_SOURCES.values())
        raise InputError(f"{spec!r} is no data set: expected NAME:PATH?key=value, one of\n{usages}")
    path, _, query = rest.partition("?")
    if not path:
        raise InputError(f"{spec!r} has nothing after the colon: expected {source.usage}")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in source.options or not equals or key in options:
            known = ", ".join(source.options) or "none"
            kind = "is given twice" if key in options else "is not an option"
            raise InputError(f"{spec!r}: {part!r} {kind}; expected {source.usage} (options: {known})")
        try:
            options[key] = source.options[key](value)
        except ValueError as error:
            kind = _KINDS.get(source.options[key], str(error))
            raise InputError(f"{spec!r}: {key}={value!r}, expected {kind}") from error
    missing = [key for key in source.required if key not in options]
    if missing:
        raise InputError(f"{spec!r} lacks {missing[0]}=...: expected {source.usage}")
    return source.build(path, **source.fixed, **options, transform=transform, target=target)
