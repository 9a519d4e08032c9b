"""Names of classes: ImageNet's, those in a file, and from whatever a user typed to a class index.

ImageNet's 1,000 classes are in the order of the sorted wnids everywhere.
"""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from camtools.checks import as_path
from camtools.errors import TargetError
from camtools.files import parse_json, read_text

MAX_BYTES = 16 * 1024**2  # of a file of class names
_WNID = re.compile(r"n\d{8}")


@cache
def imagenet_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, from torchvision's metadata."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


@cache
def imagenet_synsets(subset: str = "imagenet-1k") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (wnids, comma-separated synonyms) of the classes of one of ImageNet's subsets, from timm's metadata.

    Args:
        subset: As `timm.data.ImageNetInfo` calls it.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    return tuple(info.label_names()), tuple(info.label_descriptions())


def default_names(num_classes: int | None) -> tuple[str, ...] | None:
    """Return the names that a class count alone suggests: ImageNet's for 1,000, and none for any other count.

    Args:
        num_classes: How many classes the model has; None where that is unknown.
    """
    return imagenet_names() if num_classes == 1000 else None


def load_names(path: str | Path) -> tuple[str, ...]:
    """Read class names, by index, from a file.

    Args:
        path: A text file with one name a line (line 1 is class 0), or a `.json` file with a list of names or an object
            from index to name (`{"0": "tench", "1": "goldfish"}`).

    Raises:
        TargetError: The file is missing, is not such a list, leaves an index out, or is empty.
    """
    path = as_path("path", path, error=TargetError)
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        said = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = getattr(error, "strerror", None) or said
        raise TargetError(
            f"The class names cannot be read from {path}: {reason}. Give a text file, one name a line, or a JSON list."
        ) from error
    if path.suffix.lower() == ".json":
        names = _names_from_json(text, path)
    else:
        names = tuple(line.strip() for line in text.rstrip().splitlines())
        if "" in names:
            raise TargetError(
                f"{path}: line {names.index('') + 1} is blank, so the classes after it would be numbered wrongly. "
                "Give one name a line, line 1 for class 0."
            )
    if not names:
        raise TargetError(f"{path} holds no class names. Give one name a line, line 1 for class 0.")
    return names


def _names_from_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        data = parse_json(text)
        if isinstance(data, dict):
            by_index = {int(key): value for key, value in data.items()}
            data = [by_index[index] for index in range(len(by_index))]
    except json.JSONDecodeError as error:
        raise TargetError(
            f"{path} is not JSON: {error}. Give a list of names, or an object from index to name."
        ) from error
    except (ValueError, KeyError) as error:
        raise TargetError(
            f"{path}: an object of class names needs the indices 0 to {len(data) - 1} as keys, but {error} is wrong."
        ) from error
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise TargetError(f"{path} is not a JSON list of names, nor an object from index to name.")
    return tuple(data)


def resolve_target(
    target: int | str,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    *,
    listed: bool = False,
) -> int:
    """Find the index of a class.

    Text is tried, in this order, as a name exactly as listed, an index, a name in any letter case (hyphens and
    underscores count as spaces), and, for ImageNet's 1,000 classes, a wnid ("n01531178") or a synonym ("Carduelis
    carduelis"). The word for two of ImageNet's classes ("crane", a bird and a machine) is refused, even where only one
    of them is listed by it.

    Args:
        target: An index, or a name.
        class_names: Names by index; None where the model has none (1,000 classes are then taken to be ImageNet's).
        num_classes: How many classes the model has; the length of `class_names` where left out.
        listed: Whether the text comes from a list of such names, not from a person: one that is listed once is clear.

    Returns:
        The index, from 0 to the number of classes minus 1.

    Raises:
        TargetError: The index is out of range, the name is unknown (the closest are named) or fits several classes, or
            there are no names to compare with.
    """
    if num_classes is None and class_names is not None:
        num_classes = len(class_names)
    class_names = default_names(num_classes) if class_names is None else class_names
    if not isinstance(target, str):
        try:
            index = operator.index(target)
        except (TypeError, RuntimeError):  # torch's own for tensors without a value
            index = None
        if index is None or isinstance(target, bool):
            raise TargetError(f"A class is an index or a name, not {target!r} ({type(target).__name__}).")
        return _in_range(index, num_classes)
    text = target.strip()
    matches = _where(class_names or (), lambda name: name == text)
    if not matches and re.fullmatch(r"[+-]?\d{1,18}", text):
        return _in_range(int(text), num_classes)
    matches = matches or _where(class_names or (), lambda name: _fold(name) == _fold(text))
    matches = matches or _imagenet_index(text, class_names or ())
    if not listed:
        matches = sorted({*matches, *_of_that_word(text, class_names or ())})
    if len(matches) == 1:
        return matches[0]
    if matches:
        assert class_names is not None
        raise TargetError(
            f"{target!r} names {len(matches)} classes, {_candidates(matches, class_names)}. Give the index of the one "
            "you mean."
        )
    raise TargetError(_unknown(target, text, class_names, num_classes))


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _where(names: Sequence[str], wanted: Any) -> list[int]:
    return [index for index, name in enumerate(names) if wanted(name)]


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _are_imagenets(class_names: Sequence[str]) -> bool:
    """Whether names are ImageNet's as torchvision or timm words them."""
    return len(class_names) == 1000 and tuple(class_names) in (imagenet_names(), imagenet_synsets()[1])


def _of_that_word(text: str, class_names: Sequence[str]) -> list[int]:
    """Return ImageNet's classes whose first word this is, where that is more than one: "crane", "maillot"."""
    if not _are_imagenets(class_names):
        return []
    found = _where(imagenet_synsets()[1], lambda names: names.split(",")[0] == text)
    return found if len(found) > 1 else []


def _candidates(matches: Sequence[int], class_names: Sequence[str]) -> str:
    """Return classes as people tell them apart: their indices, and of ImageNet's also torchvision's name and wnid."""
    if not _are_imagenets(class_names):
        return _listed(matches)
    names, wnids = imagenet_names(), imagenet_synsets()[0]
    return _listed([f"{index} ({names[index]}, {wnids[index]})" for index in matches])


def _imagenet_index(text: str, class_names: Sequence[str]) -> list[int]:
    """Find a wnid, or a synonym, where the names are ImageNet's."""
    if not _are_imagenets(class_names):
        return []
    wnids, synonyms = imagenet_synsets()
    if _WNID.fullmatch(text.lower()):
        return _where(wnids, lambda wnid: wnid == text.lower())
    return _where(synonyms, lambda names: _fold(text) in [_fold(name) for name in names.split(",")])


def _in_range(index: int, num_classes: int | None) -> int:
    if index < 0 or (num_classes is not None and index >= num_classes):
        limit = f"0 to {num_classes - 1}" if num_classes else "0 upwards"
        raise TargetError(f"Class index {index} is out of range: this model's classes are numbered {limit}.")
    return index


def _unknown(target: str, text: str, class_names: Sequence[str] | None, num_classes: int | None) -> str:
    if class_names is None:
        return (
            f"There is no class named {target!r}: this model's {num_classes or ''} classes have no names. "
            "Give an index, or the names (class_names=, --class-names FILE)."
        ).replace("  ", " ")
    folded = {_fold(name): name for name in class_names}
    close = [folded[name] for name in difflib.get_close_matches(_fold(text), folded, n=3, cutoff=0.6)]
    close += [name for key, name in folded.items() if _fold(text) in key and name not in close][: 3 - len(close)]
    hint = (
        f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else f"Names are {_listed(class_names)}."
    )
    return f"There is no class named {target!r} among this model's {len(class_names)}. {hint}"


def checked_names(names: Any) -> list[str]:
    """Check class names that the caller gives."""
    try:
        listed = [] if isinstance(names, (str, Mapping)) else list(names)
    except (TypeError, RuntimeError):  # no iterable, or a tensor without an axis or values
        listed = []
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TargetError(f"class_names={names!r}: expected a list of one name per class, in the order of the scores")
    return listed
