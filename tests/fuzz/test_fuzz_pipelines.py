"""Pipelines as text and as objects: one that runs, or one error that says what is wrong."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_nets import COLOURS, Colours
from fuzzing import ANYTHING, NUMBERS, examples, refused, result_or_refusal, unchanged
from hypothesis import given
from hypothesis import strategies as st

from camtools import PRESETS, Explainer, Pipeline, Preprocess
from camtools import steps as step_classes
from camtools.pipeline.presets import as_pipeline
from camtools.pipeline.text import named_pipelines, parse_pipelines
from camtools.steps import Step

MODEL = Colours().eval()
PLAIN = Preprocess.imagenet(32, squash=True)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
STEPS = {
    name: [p for p in inspect.signature(getattr(step_classes, name)).parameters.values() if p.name != "kwargs"]
    for name in step_classes.__all__
    if inspect.isclass(getattr(step_classes, name)) and issubclass(getattr(step_classes, name), Step)
    if name not in ("Step", "CRF")  # a CRF takes seconds
}
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 30, 45, 98, 99.5, 100, 101, 0.2, 0.5, 0.999, -1, 1.43, True, None, "largest", "first"]),
    st.sampled_from([(3, 1), [1, 2, 3], (0.1,), {}, b"", 1j, 10**400, 1e999, float("nan"), "x" * 9]),
    NUMBERS,
)


@st.composite
def steps_as_text(draw: st.DrawFn) -> str:
    """Draw steps, mostly with arguments that they have."""
    parts = []
    for name in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4)):
        given = draw(st.lists(st.tuples(st.sampled_from([p.name for p in STEPS[name]] or ["a"]), VALUES), max_size=2))
        words = [draw(st.sampled_from([f"{key}={value!r}", f"{value!r}"])) for key, value in given]
        parts.append(name + (f"({', '.join(words)})" if words or draw(st.booleans()) else ""))
    return ",".join(parts)


ODD = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="NWCAMPaSIVR(),;=*[]{}'\"\\0123456789.-+ _\n\t#:@lambd", max_size=30),
    st.sampled_from(
        ["(" * 300, "[" * 5000, "-" * 5000 + "1", "IVR(" * 200, "NWC," * 400, "9" * 5000, "IVR(" + "9" * 5000 + ")"]
    ),
    st.sampled_from(
        [
            "__import__('os')",
            "IVR(__import__('os'))",
            "IVR(*[1])",
            "IVR(**{})",
            "IVR.__init__",
            "IVR()()",
            "\0",
            "cam\0",
        ]
    ),
)
TEXTS = st.one_of(
    steps_as_text(),
    st.lists(st.one_of(st.sampled_from(sorted(PRESETS)), steps_as_text(), ODD), max_size=3).map(",".join),
    st.lists(st.one_of(st.sampled_from(sorted(PRESETS)), steps_as_text(), ODD), max_size=3).map(";".join),
    st.tuples(ODD, steps_as_text()).map("=".join),
    ODD,
)


def works(pipeline: Pipeline) -> None:
    """Check that a pipeline gives maps in [0, 1] and a mask, or says why it cannot for this model."""
    scale = pipeline.scale
    if scale > 8:  # an input of gigapixels
        return
    with unchanged(MODEL):
        explainer = result_or_refusal(Explainer, MODEL, pipeline, transform=PLAIN, class_names=COLOURS)
        found = explainer if refused(explainer) else result_or_refusal(explainer, IMAGE)
    if not refused(found):
        assert found.map.shape == found.mask.shape == (24, 36)
        assert found.map.isfinite().all()
        assert torch.equal(found.mask, found.map > found.threshold)


@examples(3)
@given(TEXTS)
def test_text(text: str) -> None:
    found = result_or_refusal(parse_pipelines, text)
    if refused(found):
        return
    for name, pipeline in found[:2]:
        assert isinstance(name, str) and isinstance(pipeline, Pipeline)
        again = [step for step in re.findall(r"^    (.*),$", repr(pipeline), re.M) if "..." not in step]
        if len(again) == len(pipeline):  # what a pipeline is printed as makes the same pipeline
            ((_, same),) = parse_pipelines(",".join(again))
            assert repr(same) == repr(pipeline)
        works(pipeline)


@examples()
@given(st.one_of(ANYTHING, TEXTS, st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=2)))
def test_named(given_: Any) -> None:
    found = result_or_refusal(named_pipelines, given_)
    assert refused(found) or (found and all(isinstance(one, Pipeline) for one in found.values()))


@examples()
@given(st.one_of(ANYTHING, TEXTS, st.lists(st.one_of(VALUES, st.sampled_from(["cam", Step])), max_size=3)))
def test_as_pipeline(given_: Any) -> None:
    found = result_or_refusal(as_pipeline, given_)
    if not refused(found):
        works(found)


@examples(3)
@given(st.data())
def test_steps(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(STEPS)))
    chosen = data.draw(st.lists(st.sampled_from(STEPS[name]), max_size=3)) if STEPS[name] else []
    options = {parameter.name: data.draw(st.one_of(VALUES, ANYTHING)) for parameter in chosen}
    step = result_or_refusal(getattr(step_classes, name), **options)
    if refused(step):
        return
    for steps in ([step], [step, step], data.draw(st.permutations([step, step_classes.NWC(), step_classes.IVR()]))):
        pipeline = result_or_refusal(Pipeline, steps)
        if not refused(pipeline):
            works(pipeline)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name: str) -> None:
    works(as_pipeline(name))
