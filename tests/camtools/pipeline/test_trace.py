"""The map after every step: each entry against the pipeline's beginning run by hand, and the result left as it was."""

from itertools import chain

import numpy as np
import pytest
import torch

import camtools
from camtools import Explainer, InputError, Pipeline, PipelineError, Preprocess
from camtools.pipeline import TraceStep
from camtools.steps import (
    CAM,
    IVR,
    NWC,
    AbsoluteNegative,
    AdaptiveThreshold,
    FixedThreshold,
    MinMax,
    PaS,
    Stage,
    State,
    Step,
)

PLAIN = Preprocess(input_size=(32, 32), resize=(32, 32))


class Plus(Step):
    """Someone else's refine step, on the feature grid."""

    stage = Stage.REFINE

    def __init__(self, amount=1.0):
        self.amount = amount

    def __call__(self, state):
        return state.replace(maps=state.require("maps", self) + self.amount)


class Gamma(Plus):
    """Someone else's refine step, on the image's pixels."""

    resolution = "image"

    def __call__(self, state):
        return state.replace(maps=state.require("maps", self) ** self.amount)


class Mean(Step):
    """Someone else's map step: the mean of the weighted channels."""

    stage = Stage.MAP

    def __call__(self, state):
        maps = CAM()(state).maps / state.require("features", self).shape[1]
        return state.replace(maps=maps)


def double(maps):
    return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)


def a_state(batch=2, classes=3, **fields):
    generator = torch.Generator().manual_seed(5)
    features = torch.rand(batch, 6, 4, 5, generator=generator)
    weights = torch.randn(1, classes, 6, generator=generator)
    return State(features=features, weights=weights, resize=double, **fields)


def same(state, other):
    """Whether two states hold the same tensors, bit for bit."""
    names = ("features", "weights", "maps", "raw_maps", "masks", "thresholds")
    pairs = [(getattr(state, name), getattr(other, name)) for name in names]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


# Pipelines ------------------------------------------------------------------------------------------------------------


def test_every_entry_is_what_the_pipelines_beginning_gives():
    state = a_state()
    nwc, plus, minmax, gamma, pas = NWC(), Plus(2.0), MinMax(), Gamma(0.5), PaS(90)
    pipeline = Pipeline([AbsoluteNegative(), nwc, CAM(relu=True), plus, minmax, gamma, pas])
    done, trace = pipeline.trace(state)
    assert same(done, pipeline(state))
    absolute = AbsoluteNegative()(state)
    relu = CAM(relu=True)(nwc(absolute))
    added = plus(relu)
    resized = added.replace(maps=double(added.maps))
    expected = [
        ("weights as trained", "weights", CAM()(state)),
        ("AbsoluteNegative()", "weights", CAM()(absolute)),
        ("NWC()", "weights", CAM()(nwc(absolute))),
        ("CAM(relu=True)", "map", relu),
        ("Plus(amount=2.0)", "refine", added),
        ("resize", "resize", resized),
        ("MinMax()", "refine", minmax(resized)),
        ("Gamma(amount=0.5)", "refine", gamma(minmax(resized))),
        ("PaS(percentile=90, threshold=0.45)", "threshold", pas(gamma(minmax(resized)))),
    ]
    assert [(entry.step, entry.stage) for entry in trace] == [(step, stage) for step, stage, _ in expected]
    for entry, (_, _, after) in zip(trace, expected, strict=True):
        assert torch.equal(entry.map, after.maps), entry.step
    assert [entry.normalised for entry in trace] == [False] * 6 + [True] * 3
    assert [entry.mask is None for entry in trace] == [True] * 8 + [False]
    assert torch.equal(trace[-1].mask, done.masks)


def test_without_weights_steps_it_starts_with_the_map():
    done, trace = Pipeline([]).trace(a_state())
    assert [entry.step for entry in trace] == ["CAM(relu=False)", "resize", "MinMax()", "FixedThreshold(theta=0.2)"]
    assert torch.equal(trace[0].map, done.raw_maps)


def test_maps_that_the_caller_brings():
    maps = torch.randn(2, 3, 4, 5)
    pipeline = Pipeline([Plus(), IVR(45), FixedThreshold(0.3)])
    state = State(maps=maps, resize=double)
    done, trace = pipeline.trace(state)
    assert same(done, pipeline(state))
    names = ["maps as given", "Plus(amount=1.0)", "resize", "IVR(percentile=45)", "FixedThreshold(theta=0.3)"]
    assert [entry.step for entry in trace] == names
    assert torch.equal(trace[0].map, maps) and torch.equal(trace[1].map, maps + 1)
    assert torch.equal(trace[2].map, double(maps + 1)) and torch.equal(trace[3].map, done.maps)
    assert [entry.step for entry in Pipeline([]).trace(State(maps=maps))[1]] == [
        "maps as given", "MinMax()", "FixedThreshold(theta=0.2)",
    ]  # fmt: skip


def test_a_map_step_of_another_kind_makes_its_own_previews():
    state = a_state()
    _, trace = Pipeline([NWC(), Mean()]).trace(state)
    assert torch.equal(trace[0].map, Mean()(state).maps)
    assert torch.equal(trace[1].map, Mean()(NWC()(state)).maps) and torch.equal(trace[2].map, trace[1].map)


def test_weights_that_vary_over_positions():
    state = a_state()
    state = state.replace(weights=torch.randn(2, 3, 6, 4, 5))
    _, trace = Pipeline([NWC()]).trace(state)
    assert torch.equal(trace[0].map, CAM()(state).maps) and torch.equal(trace[1].map, CAM()(NWC()(state)).maps)


def test_one_step_object_twice():
    gamma = Gamma(2.0)
    _, trace = Pipeline([gamma, MinMax(), gamma]).trace(a_state())
    assert [entry.normalised for entry in trace] == [False, False, False, True, True, True]


def test_what_is_missing_is_named_by_its_step():
    with pytest.raises(PipelineError, match=r"NWC\(\) needs weights, but this state has none"):
        Pipeline([NWC()]).trace(State(features=torch.rand(1, 2, 3, 3)))
    with pytest.raises(PipelineError, match=r"NWC\(\) needs weights, but this state brings finished maps"):
        Pipeline([NWC()]).trace(State(maps=torch.rand(1, 2, 3, 3)))


# Summaries ------------------------------------------------------------------------------------------------------------


class Forgetful(Step):
    """Keeps no argument under its name, so it has no repr."""

    stage = Stage.REFINE

    def __init__(self, table, flag=True):
        self._table = table

    def __call__(self, state):
        return state


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([NWC(), PaS()], "NWC, CAM, MinMax, PaS(98, 0.45)"),
        ([CAM(relu=True), IVR(30)], "CAM(relu), IVR(30), FixedThreshold(0.2)"),
        ([AdaptiveThreshold("largest")], "CAM, MinMax, AdaptiveThreshold(largest, 0.05)"),
        ([Forgetful([1, 2]), Plus(3)], "CAM, Forgetful, Plus(3), MinMax, FixedThreshold(0.2)"),
    ],
)
def test_a_pipeline_on_one_line(steps, expected, make_tiny):
    assert Pipeline(steps).summary == expected
    assert camtools.explain(make_tiny(), torch.rand(3, 8, 8), pipeline=steps).pipeline == expected


def test_presets_keep_their_name(make_tiny):
    assert camtools.explain(make_tiny(), torch.rand(3, 8, 8), pipeline="rcam").pipeline == "rcam"
    assert Explainer(make_tiny(), camtools.preset("cam")).pipeline_name == "CAM, MinMax, FixedThreshold(0.2)"


# Explanations ---------------------------------------------------------------------------------------------------------


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = [noise(50, 70, 0), noise(40, 40, 1), noise(50, 70, 2), noise(33, 90, 3), noise(40, 40, 4)]
STEPS = [NWC(), Plus(0.5), MinMax(), Gamma(0.5), PaS(90)]


@pytest.mark.parametrize("pipeline", ["cam", "rcam", "adaptive", STEPS, [IVR(45)]])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_result_is_the_same_bit_for_bit(make_tiny, pipeline, batch_size):
    options = {"transform": PLAIN, "batch_size": batch_size}
    plain = Explainer(make_tiny(5), pipeline, **options)(IMAGES, top_k=3)
    traced = Explainer(make_tiny(5), pipeline, trace=True, **options)
    for explanations in (traced(IMAGES, top_k=3), list(traced.stream(iter(IMAGES), top_k=3))):
        for exp, other in zip(chain(*plain), chain(*explanations), strict=True):
            assert exp.trace == () and len(other.trace) >= 4
            assert (exp.label, exp.score, exp.threshold) == (other.label, other.score, other.threshold)
            for name in ("map", "raw_map", "mask", "boxes", "logits"):
                assert torch.equal(getattr(exp, name), getattr(other, name)), name


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_each_explanation_has_its_own_trace(make_tiny, batch_size):
    explainer = Explainer(make_tiny(5), STEPS, transform=PLAIN, trace=True, batch_size=batch_size)
    for explanations, image in zip(explainer(IMAGES, top_k=3), IMAGES, strict=True):
        for exp in explanations:
            alone = camtools.explain(make_tiny(5), image, target=exp.label, pipeline=STEPS, transform=PLAIN, trace=True)
            assert [entry.step for entry in exp.trace] == [entry.step for entry in alone.trace]
            for entry, other in zip(exp.trace, alone.trace, strict=True):
                torch.testing.assert_close(entry.map, other.map)
            by_step = {entry.step: entry for entry in exp.trace}
            grid, pixels = (8, 8), image.shape[:2]
            assert [tuple(entry.map.shape) for entry in exp.trace] == [grid] * 4 + [pixels] * 4
            assert torch.equal(by_step["CAM(relu=False)"].map, exp.raw_map)
            assert torch.equal(by_step["Plus(amount=0.5)"].map, exp.raw_map + 0.5)
            assert torch.equal(exp.trace[-1].map, exp.map) and torch.equal(exp.trace[-1].mask, exp.mask)
            assert torch.equal(by_step["Gamma(amount=0.5)"].map, by_step["MinMax()"].map ** 0.5)


def test_an_explanation_keeps_neither_the_batch_nor_a_map_twice(make_tiny):
    explanations = Explainer(make_tiny(5), "rcam", transform=PLAIN, trace=True)(IMAGES, top_k=3)
    for exp in chain(*explanations):
        for entry in exp.trace:
            assert entry.map.untyped_storage().nbytes() == entry.map.numel() * 4
        assert exp.trace[-1].map is exp.map and exp.trace[-2].map is exp.map
        assert torch.equal(exp.trace[-1].mask, exp.mask)
        assert exp.mask.untyped_storage().nbytes() == exp.mask.numel()


def test_cpu_takes_the_trace_along(make_tiny):
    exp = camtools.explain(make_tiny(), IMAGES[0], transform=PLAIN, trace=True)
    moved = exp.cpu()
    assert [entry.step for entry in moved.trace] == [entry.step for entry in exp.trace]
    assert all(entry.map is other.map for entry, other in zip(moved.trace, exp.trace, strict=True))


@pytest.mark.gpu
def test_traces_on_a_gpu(make_tiny, cuda):
    exp = camtools.explain(make_tiny(), IMAGES[0], pipeline="rcam", transform=PLAIN, trace=True, device=cuda)
    assert {entry.map.device.type for entry in exp.trace} == {"cuda"}
    moved = exp.cpu()
    assert {entry.map.device.type for entry in moved.trace} == {moved.trace[-1].mask.device.type} == {"cpu"}
    assert np.array_equal(np.asarray(exp.plot_trace()), np.asarray(moved.plot_trace()))


def test_repr():
    step = TraceStep("NWC()", "weights", torch.zeros(7, 7))
    assert repr(step) == "TraceStep('NWC()', weights, 7 x 7)"
    mask = torch.zeros(7, 7, dtype=torch.bool)
    assert repr(TraceStep("PaS()", "threshold", torch.zeros(7, 7), mask)).endswith("7 x 7, mask)")


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_trace_is_a_flag(make_tiny, value):
    with pytest.raises(InputError, match=rf"trace={value!r}: expected True or False"):
        Explainer(make_tiny(), trace=value)
