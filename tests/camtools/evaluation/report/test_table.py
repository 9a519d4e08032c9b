"""Tables: what stands in which cell, which differences are marked, what the caption says, what raises an error."""

import io

import numpy as np
import pytest
from rich.console import Console

from camtools import InputError
from camtools.evaluation.report import markdown, table
from camtools.evaluation.results import Value

VALUES = {
    "cam": {
        "MaxBoxAcc": Value(62.14, 0.203),
        "MaxBoxAccV2": Value(59.6, (0.1, 0.2, 0.3)),
        "GT-known@own": Value(np.nan),
    },
    "rcam": {
        "MaxBoxAcc": Value(64.0, 0.31, 1.86, 0.4, 3.1),
        "MaxBoxAccV2": Value(58.0, (0.1, 0.25, 0.3), -1.6, -2.5, -0.7),
        "GT-known@own": Value(50.0, None, 0.02, -1.0, 1.0),
    },
}


def rows(text):
    """The cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def shown(found, width=160):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(found)
    return console.file.getvalue()


def test_every_cell(make):
    heading, rule, *found = rows(markdown(make(values=VALUES)))
    assert heading == ["Metric", "Pipeline", "Value", "Threshold", "Δ to cam", "95 % interval"]
    assert rule[0].strip("-") == "" and all(cell.endswith("-:") for cell in rule[2:])
    assert found == [
        ["MaxBoxAcc", "cam", "62.1", "0.203", "–", "–"],
        ["MaxBoxAcc", "rcam", "64.0", "0.310", "+1.9\\*", "+0.4 to +3.1"],
        ["MaxBoxAccV2", "cam", "59.6", "0.100 / 0.200 / 0.300", "–", "–"],
        ["MaxBoxAccV2", "rcam", "58.0", "0.100 / 0.250 / 0.300", "−1.6\\*", "−2.5 to −0.7"],
        ["GT-known@own", "cam", "–", "–", "–", "–"],
        ["GT-known@own", "rcam", "50.0", "–", "0.0", "−1.0 to +1.0"],
    ]


def test_an_interval_that_only_just_leaves_zero_out_shows_it(make):
    values = {"cam": {"MaxBoxAcc": Value(50.0, 0.1)}, "rcam": {"MaxBoxAcc": Value(51.0, 0.1, 1.0, 0.03, 2.0)}}
    assert rows(markdown(make(values=values)))[-1][-2:] == ["+1.0\\*", "+0.03 to +2.00"]
    values["rcam"]["MaxBoxAcc"] = Value(51.0, 0.1, 1.0, 0.0, 2.0)
    assert rows(markdown(make(values=values)))[-1][-2:] == ["+1.0", "0.0 to +2.0"]


def test_calibrated_values_stand_next_to_the_best(make):
    values = {"cam": {"MaxBoxAcc": Value(50.0, 0.1, calibrated=49.25, calibrated_threshold=0.15)}}
    result = make(("cam",), values=values, settings={"calibration": {"data": "val", "images": 9}})
    heading, _, row = rows(markdown(result))
    assert heading == ["Metric", "Pipeline", "Value", "Threshold", "Calibrated", "Its threshold"]
    assert row == ["MaxBoxAcc", "cam", "50.0", "0.100", "49.2", "0.150"]
    assert "Calibrated: at the threshold best for the calibration data." in markdown(result)
    assert "Settings: calibration val." in markdown(result)


def test_the_caption_has_counts_failures_and_settings(make):
    failed = [(f"{number}_a.jpg", "truncated") for number in range(1200)]
    settings = {
        "transform": "long",
        "protocol": "wsol",
        "data": {"data": "cub:x", "ids": "00ff"},
        "seed": 0,
        "model": None,
    }
    text = markdown(make(values=VALUES, failed=failed, settings=settings))
    caption = text.split("\n\n", 1)[1]
    first, *_, last = caption.strip().split("\n")
    listed = ", ".join(f"{number}\\_a.jpg" for number in range(10))
    assert first.strip() == f"Per cent; 5 images, 1,200 failed ({listed} and 1,190 more)."
    assert last == "Settings: data cub:x; protocol wsol; seed 0."
    assert "95 % interval: paired bootstrap over images; \\* leaves 0 out." in caption
    open_values = {"cam": {"MaxBoxAcc": Value(50.0)}, "rcam": {"MaxBoxAcc": Value(51.0, None, 1.0, -1.0, 2.0)}}
    assert "95 % interval: paired bootstrap over images." in markdown(make(values=open_values))


def test_the_terminal_s_table_has_the_same_numbers_and_colours_for_what_is_certain(make):
    found = table(make(values=VALUES))
    text = shown(found)
    for words in ("62.1", "0.203", "+1.9*", "−1.6*", "−2.5 to −0.7", "0.100 / 0.250 / 0.300", "5 images, 0 failed"):
        assert words in text
    deltas = list(found.columns[4].cells)
    assert [str(cell.style) for cell in deltas] == ["", "bold green", "", "bold red", "", ""]
    assert [cell.plain for cell in found.columns[0].cells] == ["MaxBoxAcc", "", "MaxBoxAccV2", "", "GT-known@own", ""]
    assert [row.end_section for row in found.rows] == [False, True] * 3


def test_names_are_not_read_as_markup(make):
    name = "[red]NWC|a_b*`<x>"
    result = make((name,), values={name: {"MaxBoxAcc": Value(50.0, 0.1)}})
    assert name in shown(table(result))
    line = markdown(result).splitlines()[2]
    assert "[red]NWC\\|a\\_b\\*\\`\\<x>" in line


def test_some_metrics_and_what_raises_an_error(make):
    result = make(values=VALUES)
    assert {row[0] for row in rows(markdown(result, ["GT-known@own"]))[2:]} == {"GT-known@own"}
    with pytest.raises(
        InputError, match=r"metrics=\['PxAP'\]: expected some of those that the result has: MaxBoxAcc, "
    ):
        table(result, ["PxAP"])
    for wrong in ([], "MaxBoxAcc"):
        with pytest.raises(InputError, match="expected some of those"):
            markdown(result, wrong)
