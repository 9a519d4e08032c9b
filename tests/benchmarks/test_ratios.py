"""The benchmarks' arithmetic; nothing is timed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_path = Path(__file__).with_name("ratios.py")
_spec = importlib.util.spec_from_file_location("camtools_benchmark_ratios", _path)
assert _spec is not None and _spec.loader is not None
ratios = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = ratios  # dataclasses look their module up
_spec.loader.exec_module(ratios)


def test_the_ratio_is_taken_within_rounds_and_its_median_shown():
    # The medians of the two are 2 and 1; a slow spell in round three hits both and must not show.
    found = ratios.ratio("a / b", [2.0, 2.2, 40.0], [1.0, 2.0, 20.0], 1.9)
    assert found.values == (2.0, 1.1, 2.0)
    assert found.median == 2.0
    assert found.row() == ("a / b", "2.000", "1.100 to 2.000", "<= 1.90", "NO")


@pytest.mark.parametrize(
    ("aim", "sense", "met"),
    [(2.0, "at most", True), (1.99, "at most", False), (2.0, "at least", True), (2.01, "at least", False)],
)
def test_an_aim_is_met_up_to_itself(aim, sense, met):
    assert ratios.Ratio("a / b", (2.0,), aim, sense).met is met


def test_without_an_aim_nothing_is_met_or_missed():
    found = ratios.Ratio("a / b", (1.0, 4.0))
    assert found.met is None
    assert found.row() == ("a / b", "2.500", "1.000 to 4.000", "", "")


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_must_pair_up(above, below):
    with pytest.raises(ValueError, match="expected as many of both"):
        ratios.ratio("a / b", above, below)


def test_contenders_take_turns_and_what_comes_between_is_not_timed():
    now, calls = [0.0], []

    def takes(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    contenders = {"a": takes("a", 1.0), "b": takes("b", 3.0)}
    wait, between = takes("wait", 0.0), takes("between", 100.0)
    seconds = ratios.interleave(contenders, 2, wait, between, clock=lambda: now[0])
    assert seconds == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert calls == ["between", "wait", "a", "wait", "between", "wait", "b", "wait"] * 2


def test_the_table_lines_up():
    assert ratios.table(("", "n"), [("long name", "1"), ("b", "22")]).splitlines() == [
        "|           | n  |",
        "|-----------|----|",
        "| long name | 1  |",
        "| b         | 22 |",
    ]
