"""From the data set's classes to the model's, or an error: labels that don't fit the weights make numbers up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camtools.classes.names import default_names, resolve_target
from camtools.errors import TargetError


@dataclass(frozen=True)
class ClassMap:
    """Which class of the model each class of the data set is.

    Attributes:
        index: The model's index for each of the data set's classes; -1 for one that the model lacks and no image has.
        names: Of the data set's classes.
        how: In words, for the settings.
    """

    index: tuple[int, ...]
    names: tuple[str, ...]
    how: str

    @property
    def known(self) -> list[int]:
        """The data set's classes that the model has."""
        return [label for label, index in enumerate(self.index) if index >= 0]


def match_classes(
    data: Sequence[str], occurring: Sequence[int], num_classes: int, model: Sequence[str] | None
) -> ClassMap:
    """Match the classes of data and model.

    Names that are whole numbers are the model's indices. Other names are looked up among the model's, wnids and
    synonyms of ImageNet included; where the model has no names, there have to be as many classes, which then are taken
    to be in the same order.

    Args:
        data: Names of the data set's classes, by index.
        occurring: Those that occur in the images.
        num_classes: How many classes the model has.
        model: Names of the model's classes; None where it has none (1,000 classes are ImageNet's).

    Raises:
        TargetError: They don't fit; says which, and the way out.
    """
    names = default_names(num_classes) if model is None else tuple(model)
    if names is not None and len(names) != num_classes:
        raise TargetError(
            f"There are {len(names)} class names for a model of {num_classes} classes: expected one name each. Give "
            "class_names that belong to these weights."
        )
    if names is not None and tuple(data) == tuple(names):
        return ClassMap(tuple(range(num_classes)), tuple(data), "the same names in the same order")
    if all(name.isdecimal() for name in data):
        return _by_index(data, occurring, num_classes, names)
    if names is None:
        if len(data) != num_classes:
            raise TargetError(
                f"The data has {len(data)} classes ({_some(data)}) and the model {num_classes} without names: expected "
                "as many. Give the model's class_names (--class-names FILE), or the weights trained on this data."
            )
        return ClassMap(tuple(range(num_classes)), tuple(data), f"by order: the model's {num_classes} have no names")
    return _by_name(data, occurring, names)


def _by_index(data: Sequence[str], occurring: Sequence[int], num_classes: int, names: Sequence[str] | None) -> ClassMap:
    index = [int(name) for name in data]
    beyond = [index[label] for label in occurring if index[label] >= num_classes]
    if beyond:
        raise TargetError(
            f"The data has the class {max(beyond)}, but the model's {num_classes} are numbered 0 to {num_classes - 1}: "
            "expected weights for this data, or the model that they belong to."
        )
    shown = [names[i] if names is not None and i < num_classes else str(i) for i in index]
    return ClassMap(tuple(i if i < num_classes else -1 for i in index), tuple(shown), "by index")


def _by_name(data: Sequence[str], occurring: Sequence[int], names: Sequence[str]) -> ClassMap:
    index, wrong = [], {}
    for label, name in enumerate(data):
        try:
            if name.isdecimal() and name not in names:  # an index among names would be a guess
                raise TargetError(f"There is no class named {name!r}.")
            index.append(resolve_target(name, names, listed=True))
        except TargetError as error:
            index.append(-1)
            wrong[label] = str(error)
    bad = [label for label in occurring if label in wrong]
    if bad:
        raise TargetError(
            f"{len(bad)} of the data's {len(occurring)} classes are not among the model's {len(names)} "
            f"({_some([data[label] for label in bad])}). {wrong[bad[0]]} Give the model's own class_names "
            "(--class-names FILE), or the weights trained on this data."
        )
    owners: dict[int, str] = {}
    for label in occurring:
        if index[label] in owners:
            raise TargetError(
                f"{owners[index[label]]!r} and {data[label]!r} of the data are both the model's class {index[label]} "
                f"({names[index[label]]!r}): expected one each. Give class_names that tell them apart."
            )
        owners[index[label]] = data[label]
    return ClassMap(tuple(index), tuple(data), "by name")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
