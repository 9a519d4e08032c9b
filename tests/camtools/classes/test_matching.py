"""From the data's classes to the model's: what is matched, and what is refused."""

import pytest

from camtools.classes.matching import match_classes
from camtools.classes.names import imagenet_names
from camtools.errors import TargetError

BIRDS = ("sparrow", "crow", "gull")


def test_same_names_in_the_same_order():
    found = match_classes(imagenet_names(), [5], 1000, None)  # "crane" and "maillot" occur twice among them
    assert (found.index, found.how) == (tuple(range(1000)), "the same names in the same order")


def test_numbers_are_indices():
    found = match_classes(["0", "1", "2"], [0, 1, 2], 1000, None)
    assert (found.index, found.names[1], found.how) == ((0, 1, 2), "goldfish", "by index")
    assert match_classes(["0", "1", "2", "3"], [0, 2], 3, None).index == (0, 1, 2, -1)
    with pytest.raises(TargetError, match="The data has the class 3, but the model's 3 are numbered 0 to 2"):
        match_classes(["0", "1", "2", "3"], [0, 3], 3, None)


def test_names_in_another_order():
    found = match_classes(["gull", "Sparrow"], [0, 1], 3, BIRDS)
    assert (found.index, found.how, found.known) == ((2, 0), "by name", [0, 1])
    assert match_classes(["gull", "dodo"], [0], 3, BIRDS).index == (2, -1)  # no image has a dodo
    with pytest.raises(TargetError, match=r"1 of the data's 2 classes are not among the model's 3 \('dodo'\)"):
        match_classes(["gull", "dodo"], [0, 1], 3, BIRDS)


def test_wnids_are_found_among_imagenets_names_only():
    found = match_classes(["n02086240", "n01440764"], [0, 1], 1000, None)
    assert found.index == (155, 0)
    other = [f"class {i}" for i in range(1000)]
    with pytest.raises(TargetError, match="are not among the model's 1000"):
        match_classes(["n02086240", "n01440764"], [0, 1], 1000, other)


def test_two_names_of_one_class():
    with pytest.raises(TargetError, match="'gull' and 'GULL' of the data are both the model's class 2"):
        match_classes(["gull", "GULL"], [0, 1], 3, BIRDS)


def test_without_names_the_number_of_classes_decides():
    assert match_classes(BIRDS, [0], 3, None).how == "by order: the model's 3 have no names"
    with pytest.raises(TargetError, match=r"The data has 3 classes .* and the model 4 without names: expected as many"):
        match_classes(BIRDS, [0], 4, None)


def test_names_for_another_model():
    with pytest.raises(TargetError, match="There are 3 class names for a model of 4 classes"):
        match_classes(BIRDS, [0], 4, BIRDS)
