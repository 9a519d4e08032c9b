import math

import pytest
import torch

from camtools import Pipeline
from camtools.errors import PipelineError
from camtools.steps import CAM, NWC, Affinity, Enlarge, Stage, State


def test_changes_nothing_in_a_state():
    state = State(maps=torch.rand(1, 1, 2, 2))
    assert Enlarge(2.0)(state) is state


def test_acts_before_the_weights():
    assert Enlarge.stage == Stage.INPUT < Stage.WEIGHTS
    assert Enlarge().scale == 1.43 and repr(Enlarge(2)) == "Enlarge(scale=2)"


@pytest.mark.parametrize("value", [0, -1.5, math.inf, math.nan, True, "2", None])
def test_impossible_scales_are_refused(value):
    with pytest.raises(PipelineError) as error:
        Enlarge(value)
    assert str(error.value) == f"Enlarge(scale={value!r}): scale must be a finite number above 0."


def test_a_pipeline_knows_its_scale():
    assert Pipeline([Enlarge(2), NWC()]).scale == 2
    assert Pipeline([Enlarge(0.5)]).scale == 0.5
    assert Pipeline([NWC()]).scale == 1.0
    assert Pipeline([Enlarge(2), Affinity(3)]).needs_pyramid == 3


def test_the_rest_of_the_pipeline_is_filled_in():
    pipeline = Pipeline([Enlarge(2), NWC()])
    assert [type(step).__name__ for step in pipeline] == ["Enlarge", "NWC", "CAM", "MinMax", "FixedThreshold"]
    assert pipeline.summary == "Enlarge(2), NWC, CAM, MinMax, FixedThreshold(0.2)"
    assert [type(step).__name__ for step in Pipeline([*pipeline[:1]])] == ["Enlarge", "CAM", "MinMax", "FixedThreshold"]


def test_called_on_a_state_a_pipeline_is_the_one_without():
    state = State(features=torch.randn(2, 6, 4, 5), weights=torch.randn(1, 3, 6))
    with_it, without = Pipeline([Enlarge(2), NWC()])(state), Pipeline([NWC()])(state)
    assert with_it.maps.equal(without.maps) and with_it.masks.equal(without.masks)
    brought = State(maps=torch.randn(1, 1, 4, 4))
    assert Pipeline([Enlarge(2)])(brought).maps.equal(Pipeline([])(brought).maps)


def test_a_trace_has_no_entry_of_it():
    state = State(features=torch.randn(2, 6, 4, 5), weights=torch.randn(1, 3, 6))
    _, entries = Pipeline([Enlarge(2), NWC()]).trace(state)
    _, without = Pipeline([NWC()]).trace(state)
    assert [entry.step for entry in entries] == [entry.step for entry in without]
    assert entries[0].step == "weights as trained" and entries[0].map.equal(CAM()(state).maps)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            [Enlarge(2), Enlarge(3)],
            "Enlarge(scale=2) and Enlarge(scale=3) both choose the input; a pipeline has one input step. Remove one.",
        ),
        (
            [NWC(), Enlarge(2)],
            "Enlarge(scale=2) (input) can't come after NWC() (weights). Put Enlarge(scale=2) before NWC(); the order "
            "is: one input step, weights steps, one map step, refine steps, one threshold step, one parts step.",
        ),
    ],
)
def test_impossible_orders_are_refused_in_words(steps, words):
    with pytest.raises(PipelineError) as error:
        Pipeline(steps)
    assert str(error.value) == words
