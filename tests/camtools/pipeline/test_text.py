"""Pipelines by name: presets, objects, and steps written as text."""

import pytest

from camtools import PRESETS, preset
from camtools.errors import PipelineError
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import named_pipelines, parse_pipelines
from camtools.steps import CAM, IVR, NWC, PaS


def summaries(given):
    return {name: pipeline.summary for name, pipeline in named_pipelines(given).items()}


def test_presets_and_steps_in_one_text():
    named = summaries("cam, rcam; NWC, IVR(45) ;mine=AbsoluteNegative,PaS(percentile=90)")
    assert list(named) == ["cam", "rcam", "NWC,IVR(45)", "mine"]
    assert named["cam"] == preset("cam").summary
    assert named["NWC,IVR(45)"] == "NWC, CAM, IVR(45), FixedThreshold(0.2)"
    assert named["mine"] == Pipeline([*named_pipelines("AbsoluteNegative,PaS(90)")["AbsoluteNegative,PaS(90)"]]).summary


def test_every_preset_in_one_text():
    assert summaries(",".join(PRESETS)) == {name: preset(name).summary for name in PRESETS}


def test_objects():
    assert list(summaries(Pipeline([NWC()]))) == ["NWC, CAM, MinMax, FixedThreshold(0.2)"]
    assert list(summaries([NWC(), IVR(45)])) == ["NWC, CAM, IVR(45), FixedThreshold(0.2)"]  # steps: one pipeline
    assert next(iter(summaries(["cam", [NWC()], CAM(relu=True)]))) == "cam"
    assert len(summaries(["cam", [NWC()], CAM(relu=True)])) == 3
    assert list(summaries({"a": "NWC,PaS(90)", "b": [PaS()], "c": "cam"})) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "NWC,__import__('os')",
        "NWC()()",
        "steps.NWC",
        "IVR(open('x'))",
        "NWC,cam",
        "Step()",
        "NWC,,IVR(",
        "IVR(45, **{'a': 1})",
        "IVR(1, 2, 3)",
        "IVR(" * 300,
        "-" * 5000 + "1",
    ],
)
def test_nothing_else_is_run(text):
    with pytest.raises(PipelineError, match="is neither presets nor steps"):
        parse_pipelines(text)


def test_impossible_steps_say_why():
    with pytest.raises(PipelineError, match="can't come after"):
        parse_pipelines("PaS(90),NWC")
    with pytest.raises(PipelineError, match="percentile"):
        parse_pipelines("IVR(100)")
