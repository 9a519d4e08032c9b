"""Whether a model's classifier fits the training data's classes, or a fresh one has to take its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camtools.errors import TargetError
from camtools.evaluation.classes import match_classes
from camtools.evaluation.selection import Selection


@dataclass(frozen=True)
class Fit:
    """How the data's classes and the trained model's go together.

    Attributes:
        index: The trained model's index for each of the data's classes.
        names: Of the trained model's classes.
        fresh: How many classes a fresh classifier has; None where the model's own fits.
        words: What was found, for people.
    """

    index: tuple[int, ...]
    names: tuple[str, ...]
    fresh: int | None
    words: str


def fit_classes(data: Selection, count: int, names: Sequence[str] | None) -> Fit:
    """Keep the model's classifier where each of its classes is one of the data's; else take the data's classes.

    Args:
        data: The training data.
        count: How many classes the model has.
        names: Their names; None where unknown.
    """
    classes = tuple(data.classes)
    same = range(len(classes))
    try:
        found = match_classes(classes, list(same), count, names)
    except TargetError:
        found = None
    if found is None or sorted(found.index) != list(range(count)):
        words = f"the model has {count} classes, the data {len(classes)}"
        if count == len(classes):
            words = f"the model's {count} classes have other names than the data's"
        return Fit(tuple(same), classes, len(classes), f"{words}: a fresh linear classifier takes the old one's place")
    own = [""] * count
    for label, place in enumerate(found.index):
        own[place] = classes[label]
    kept = tuple(own) if names is None else tuple(names)
    return Fit(found.index, kept, None, f"the model's own classifier is kept: {count} classes matched {found.how}")
