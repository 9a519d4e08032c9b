"""Whole numbers, numbers within an interval, shares and flags: what passes, and what the error says of the rest."""

import math

import numpy as np
import pytest

from camtools import InputError, PipelineError
from camtools.checks import flag, literal, number, one_of, share, whole


def test_what_passes_comes_back_as_pythons_own():
    assert [whole("n", value, 0, 8) for value in (0, 8, np.int64(3))] == [0, 8, 3]
    assert type(whole("n", np.int64(3))) is int
    assert [number("x", value) for value in (1, 0.5, np.float32(0.25))] == [1.0, 0.5, 0.25]
    assert type(number("x", 1)) is float
    assert (number("x", 0, "[0, 1]"), number("x", 1, "[0, 1]")) == (0.0, 1.0)
    assert (share("x", 0), flag("f", True), flag("f", False)) == (0.0, True, False)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None, [1]])
def test_no_whole_number(value):
    with pytest.raises(InputError) as error:
        whole("n", value)
    assert str(error.value) == f"n={value!r}: expected a whole number of at least 1"


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (0, "(0, inf)", "a finite number above 0"),
        (math.inf, "(0, inf)", "a finite number above 0"),
        (math.nan, "[0, inf)", "a finite number of at least 0"),
        (10**400, "[0, inf)", "a finite number of at least 0"),
        (1, "[0, 1)", "a number, 0 <= x < 1"),
        (0.0, "(0, 1]", "a number, 0 < x <= 1"),
        (True, "[0, 1]", "a number, 0 <= x <= 1"),
        ("0.5", "[0.1, 0.9]", "a number, 0.1 <= x <= 0.9"),
    ],
)
def test_no_such_number(value, interval, expected):
    with pytest.raises(InputError) as error:
        number("x", value, interval)
    assert str(error.value) == f"x={value!r}: expected {expected}"


def test_the_owner_is_named_and_the_error_chosen():
    with pytest.raises(PipelineError) as error:
        share("delta", 1, owner="CREAM", error=PipelineError)
    assert str(error.value) == "CREAM(delta=1): delta must be a number, 0 <= delta < 1."
    with pytest.raises(PipelineError) as error:
        whole("steps", 9, 1, 8, owner="CREAM", error=PipelineError)
    assert str(error.value) == "CREAM(steps=9): steps must be a whole number of at least 1 and at most 8."
    with pytest.raises(InputError, match=r"^trace=1: expected True or False$"):
        flag("trace", 1)


@pytest.mark.parametrize("value", ["c", None, ["a"], np.array([], np.uint8)], ids=["word", "none", "list", "array"])
def test_one_of_a_few_words(value):
    assert one_of("split", "a", ("a", "b")) == "a"
    with pytest.raises(InputError) as error:
        one_of("split", value, ("a", "b"))
    assert str(error.value) == f"split={value!r}: expected 'a' or 'b'"
    with pytest.raises(PipelineError) as error:
        one_of("method", value, ("a", "b", "d"), owner="Gradient", error=PipelineError)
    assert str(error.value) == f"Gradient(method={value!r}): method must be one of 'a', 'b', 'd'."


@pytest.mark.parametrize("text", ["same", "", "1 +", "[" * 5000, "-" * 5000 + "1", "9" * 5000, "{[]: 1}", "\0"])
def test_what_is_no_literal_stays_text(text):
    assert literal(text) == text
    assert (literal("0.5"), literal("(1, 2)"), literal("None")) == (0.5, (1, 2), None)
