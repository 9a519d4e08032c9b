import pytest
import torch
import torch.nn.functional as F

from camtools.errors import PipelineError
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import PRESETS, preset
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


class OnFeatures(Step):
    """A refine step on the feature grid: adds one."""

    stage = Stage.REFINE

    def __call__(self, state):
        return state.replace(maps=state.require("maps", self) + 1)


class OnImage(Step):
    """A refine step on the image's pixels that reads it: maps times mean brightness."""

    stage = Stage.REFINE
    resolution = "image"
    needs_image = True

    def __call__(self, state):
        brightness = state.require("images", self).mean(1, keepdim=True)
        return state.replace(maps=state.require("maps", self) * brightness)


class Record(Step):
    """A step of any kind that writes down the shape of the maps it was given."""

    stage = Stage.REFINE

    def __init__(self, seen, stage=Stage.REFINE, resolution="feature"):
        self.seen, self.stage, self.resolution = seen, stage, resolution

    def __call__(self, state):
        self.seen.append(None if state.maps is None else tuple(state.maps.shape))
        return state

    def __repr__(self):
        return "Record()"


def double(maps):
    """A resize whose result is easily told: every pixel twice in each direction."""
    return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)


def a_state(batch=2, classes=3, **fields):
    generator = torch.Generator().manual_seed(5)
    features = torch.rand(batch, 6, 4, 5, generator=generator)
    weights = torch.randn(1, classes, 6, generator=generator)
    pyramid = tuple(torch.rand(batch, 3, 4 * n, 5 * n, generator=generator) for n in (2, 4))
    return State(features=features, weights=weights, resize=double, pyramid=pyramid, **fields)


# --- building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], "CAM MinMax FixedThreshold"),
        ([NWC()], "NWC CAM MinMax FixedThreshold"),
        (NWC(), "NWC CAM MinMax FixedThreshold"),
        ((NWC(), AbsoluteNegative()), "NWC AbsoluteNegative CAM MinMax FixedThreshold"),
        ([PaS()], "CAM MinMax PaS"),
        ([IVR()], "CAM IVR FixedThreshold"),
        ([NWC(), OnFeatures(), PaS()], "NWC CAM OnFeatures MinMax PaS"),
        ([OnFeatures(), OnImage()], "CAM OnFeatures OnImage MinMax FixedThreshold"),
        ([MinMax(), OnImage()], "CAM MinMax OnImage FixedThreshold"),
        ([CAM(relu=True), MinMax(), AdaptiveThreshold()], "CAM MinMax AdaptiveThreshold"),
    ],
)
def test_what_is_left_out_is_filled_in(steps, expected):
    assert [type(step).__name__ for step in Pipeline(steps)] == expected.split()


def test_given_steps_are_the_ones_used():
    cam, pas = CAM(relu=True), PaS(90)
    pipeline = Pipeline(iter([cam, pas]))
    assert pipeline[0] is cam and pipeline[-1] is pas
    assert Pipeline([])[-1].theta == 0.2


def test_is_an_immutable_sequence():
    pipeline = Pipeline([NWC()])
    assert len(pipeline) == 4 and list(pipeline) == list(pipeline.steps)
    assert [type(s) for s in pipeline[1:3]] == [CAM, MinMax]
    assert pipeline[0] in pipeline
    with pytest.raises(TypeError):
        pipeline[0] = CAM()
    changed = Pipeline([*pipeline[:-1], PaS()])
    assert isinstance(changed[-1], PaS) and isinstance(pipeline[-1], FixedThreshold)
    assert Pipeline(pipeline).steps == pipeline.steps


def test_repr_reads_like_the_call():
    pipeline = Pipeline([NWC(), PaS(90, 0.35)])
    assert repr(pipeline) == (
        "Pipeline([\n    NWC(),\n    CAM(relu=False),\n    MinMax(),\n    PaS(percentile=90, threshold=0.35),\n])"
    )
    names = {c.__name__: c for c in (Pipeline, NWC, CAM, MinMax, PaS, IVR, AdaptiveThreshold, AbsoluteNegative)}
    for original in (pipeline, Pipeline([AbsoluteNegative(), IVR(30), AdaptiveThreshold("largest")])):
        assert repr(eval(repr(original), names)) == repr(original)


def test_needs_image():
    assert Pipeline([OnImage()]).needs_image and not Pipeline([NWC()]).needs_image


# --- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([CAM(), NWC()], "NWC() (weights) can't come after CAM(relu=False) (map). Put NWC() before CAM(relu=False)"),
        ([PaS(90), MinMax()], "MinMax() (refine) can't come after PaS(percentile=90, threshold=0.45) (threshold). Put"),
        ([NWC(), MinMax(), CAM()], "CAM(relu=False) (map) can't come after MinMax() (refine). Put CAM(relu=False)"),
        ([CAM(), CAM(relu=True)], "CAM(relu=False) and CAM(relu=True) both make the maps"),
        ([FixedThreshold(), PaS()], "FixedThreshold(theta=0.2) and PaS(percentile=98, threshold=0.45) both threshold"),
        ([MinMax(), OnFeatures()], "OnFeatures() works on the feature grid and can't come after MinMax()"),
        ([MinMax(), OnFeatures()], "Put OnFeatures() before MinMax()"),
    ],
)
def test_impossible_orders_are_refused_in_words(steps, words):
    with pytest.raises(PipelineError) as error:
        Pipeline(steps)
    assert words in str(error.value)


def test_order_error_gives_the_right_order():
    with pytest.raises(PipelineError, match="weights steps, one map step, refine steps, one threshold step"):
        Pipeline([CAM(), NWC()])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([NWC], "Item 0 of the pipeline is not a step. Got the class NWC itself; write NWC(), with parentheses."),
        ([NWC(), "cam"], "Item 1 of the pipeline is not a step. Got 'cam' (str). "),
        (["cam"], "If it is a preset's name, unpack its steps: [*preset('cam'), ...]"),
        ([preset("cam")], "Pipelines don't nest; unpack its steps: [*pipeline, ...]"),
        ([lambda state: state], "(function). Expected an instance of camtools.steps.Step"),
        ([None], "Got None (NoneType)"),
        ("cam", "A pipeline is made of steps. Got 'cam' (str)"),
        (NWC, "A pipeline is made of steps. Got the class NWC itself; write NWC()"),
        (3, "A pipeline is made of steps. Got 3 (int)"),
    ],
)
def test_what_is_not_a_step_is_named(steps, words):
    with pytest.raises(PipelineError) as error:
        Pipeline(steps)
    assert words in str(error.value)


# --- running --------------------------------------------------------------------------------------------------------


def test_equals_the_steps_by_hand():
    state = a_state()
    result = Pipeline([NWC(), PaS(90, 0.5)])(state)
    raw = torch.einsum("kc,bchw->bkhw", state.weights[0].clamp_min(0), state.features)
    maps = double(raw)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - low) / (high - low)
    thresholds = 0.5 * torch.quantile(maps.flatten(2), 0.9, dim=-1)
    torch.testing.assert_close(result.raw_maps, raw)
    torch.testing.assert_close(result.maps, maps)
    torch.testing.assert_close(result.thresholds, thresholds)
    assert result.masks.equal(result.maps > result.thresholds[..., None, None])
    assert result.maps.shape == result.masks.shape == (2, 3, 8, 10) and result.raw_maps.shape == (2, 3, 4, 5)


def test_given_state_stays_as_it_was():
    state = a_state()
    before = state.features.clone(), state.weights.clone()
    Pipeline([NWC()])(state)
    assert state.maps is None and state.masks is None and state.resize is double
    assert state.features.equal(before[0]) and state.weights.equal(before[1])


def test_resize_is_applied_once_and_before_the_first_step_on_pixels():
    small, large = (2, 3, 4, 5), (2, 3, 8, 10)
    seen = []
    result = Pipeline(
        [
            Record(seen, Stage.WEIGHTS),
            CAM(),
            Record(seen),
            Record(seen, Stage.REFINE, "image"),
            MinMax(),
            Record(seen, Stage.THRESHOLD, "feature"),
        ]
    )(a_state())
    assert seen == [None, small, large, large], "thresholds see pixels whatever they declare"
    assert result.maps.shape == large and result.resize is None


def test_without_resize_all_stays_on_the_feature_grid():
    result = Pipeline([])(a_state().replace(resize=None))
    assert result.maps.shape == result.masks.shape == (2, 3, 4, 5)


def test_raw_maps_are_from_before_any_refinement():
    state = a_state()
    result = Pipeline([OnFeatures()])(state)
    assert result.raw_maps.equal(CAM()(state).maps)


def test_features_then_image_is_the_call():
    pipeline, state = Pipeline([NWC(), OnFeatures(), PaS()]), a_state()
    middle = pipeline.features(state)
    assert middle.maps.shape == (2, 3, 4, 5) and middle.resize is double and middle.masks is None
    whole, parts = pipeline(state), pipeline.image(middle)
    for name in ("maps", "raw_maps", "masks", "thresholds"):
        assert getattr(whole, name).equal(getattr(parts, name))


def test_one_batch_of_features_for_images_of_two_sizes():
    pipeline = Pipeline([NWC()])
    state = a_state().replace(resize=None)
    middle = pipeline.features(state)
    for index, size in enumerate([(8, 10), (7, 5)]):

        def resize(maps, size=size):
            return F.interpolate(maps, size, mode="bilinear")

        single = middle.replace(
            features=None, maps=middle.maps[index][None], raw_maps=middle.raw_maps[index][None], resize=resize
        )
        alone = pipeline(state.replace(features=state.features[index][None], resize=resize))
        result = pipeline.image(single)
        assert result.maps.shape == (1, 3, *size)
        torch.testing.assert_close(result.maps, alone.maps)


def test_steps_that_read_the_image_get_it():
    images = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    state = a_state(images=images)
    expected = MinMax()(State(maps=double(CAM()(state).maps) * images.mean(1, keepdim=True))).maps
    torch.testing.assert_close(Pipeline([OnImage()])(state).maps, expected)
    with pytest.raises(PipelineError, match=r"OnImage\(\) needs images"):
        Pipeline([OnImage()])(a_state())


def test_maps_with_a_nan_count_as_zeros():
    state = a_state()
    features = state.features.clone()
    features[0, 0, 0, 0] = float("nan")
    result = Pipeline([])(state.replace(features=features))
    assert result.maps[0].eq(0).all() and not result.masks[0].any()
    assert result.maps[1].amax((1, 2)).eq(1).all()


def test_gradients_reach_the_features():
    state = a_state()
    state.features.requires_grad_()
    Pipeline([NWC()])(state).maps.sum().backward()
    assert state.features.grad.isfinite().all() and state.features.grad.abs().sum() > 0


# --- maps that the caller brings ------------------------------------------------------------------------------------


def test_brought_maps_pass_the_map_step_by():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    result = Pipeline([PaS(90)])(State(maps=maps, resize=double))
    assert result.raw_maps.equal(maps)
    assert result.maps.equal(MinMax()(State(maps=double(maps))).maps)


def test_brought_maps_may_come_with_features():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    result = Pipeline([])(a_state().replace(weights=None, maps=maps))
    assert result.raw_maps.equal(maps) and result.features is not None


def test_weights_step_on_brought_maps_is_refused():
    with pytest.raises(PipelineError) as error:
        Pipeline([NWC()])(State(maps=torch.rand(1, 1, 2, 2)))
    assert "NWC() needs weights, but this state brings finished maps without them" in str(error.value)


def test_maps_and_weights_at_once_are_refused():
    pipeline = Pipeline([])
    with pytest.raises(PipelineError, match="both maps and weights"):
        pipeline(pipeline(a_state()))


@pytest.mark.parametrize("missing", ["features", "weights"])
def test_empty_state_says_what_is_missing(missing):
    with pytest.raises(PipelineError, match=f"needs {missing}"):
        Pipeline([])(a_state().replace(**{missing: None}))


def test_image_without_maps_says_so():
    with pytest.raises(PipelineError, match="needs maps"):
        Pipeline([]).image(a_state())


# A CRF turns small differences into large ones, and its backends differ between devices: test_crf.py compares those.
# Gradients come with a model: test_gradient.py.
CLOSE = sorted(name for name in PRESETS if not preset(name).needs_image and not preset(name).needs_gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", CLOSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_presets_on_cuda_equal_the_cpu(name, dtype):
    state = a_state()
    state = state.replace(features=state.features.to(dtype))
    pyramid = tuple(stage.cuda() for stage in state.pyramid)
    there = state.replace(features=state.features.cuda(), weights=state.weights.cuda(), pyramid=pyramid)
    on_gpu = preset(name)(there)
    assert on_gpu.masks.is_cuda and on_gpu.maps.dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(on_gpu.maps.cpu(), preset(name)(state).maps, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", CLOSE)
def test_presets_in_bfloat16_stay_near_float32(name):
    state = a_state()
    half = preset(name)(state.replace(features=state.features.bfloat16()))
    assert half.maps.dtype == torch.float32 and half.raw_maps.dtype == torch.bfloat16
    torch.testing.assert_close(half.maps, preset(name)(state).maps, atol=5e-2, rtol=0)
