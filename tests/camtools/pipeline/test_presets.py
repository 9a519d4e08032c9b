import pytest
import torch
from torch.nn.functional import avg_pool2d

from camtools.errors import PipelineError
from camtools.images.geometry import Geometry
from camtools.model.backward import Backward
from camtools.model.layout import Layout
from camtools.model.pyramid import LevelSpec, StageOutput
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import PRESETS, as_pipeline, preset
from camtools.steps import CREAM, CRF, NWC, Affinity, Enlarge, PaS, RangeThreshold, State

BEST = [
    "Gradient(method='product', levels=(0, 1, 2))",
    repr(Affinity(2, 3)),
    "EdgeLevel(power=1.0)",
    "MinMax()",
    "FixedThreshold(theta=0.48)",
]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cam", ["CAM(relu=False)", "MinMax()", "FixedThreshold(theta=0.2)"]),
        ("rcam", ["NWC()", "CAM(relu=False)", "MinMax()", repr(PaS(98))]),
        (
            "adaptive",
            ["AbsoluteNegative()", "CAM(relu=False)", "MinMax()", "AdaptiveThreshold(select='first', interval=0.05)"],
        ),
        ("cream", ["CAM(relu=False)", repr(CREAM(centre=True)), "MinMax()", "FixedThreshold(theta=0.5)"]),
        (
            "rcam+crf",
            [
                "NWC()",
                "CAM(relu=False)",
                "MinMax()",
                repr(CRF(background=0.45, gaussian=(3, 1), bilateral=(80, 13, 2))),
                "FixedThreshold(theta=0.5)",
            ],
        ),
        ("fast", ["CAM(relu=False)", repr(Affinity(2, 2)), "MinMax()", repr(RangeThreshold(30, 0.3))]),
        ("best", BEST),
        ("best+enlarge", [repr(Enlarge(1.43)), *BEST]),
    ],
)
def test_what_the_names_stand_for(name, steps):
    assert [repr(step) for step in preset(name)] == steps


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_runs_is_fresh_and_described(name):
    assert preset(name) is not preset(name)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    fine = random(2, 3, 28, 28).requires_grad_()
    middle = avg_pool2d(fine, 2)
    features = avg_pool2d(middle, 2).repeat(1, 2, 1, 1)
    stages = tuple(
        StageOutput(one, LevelSpec(name, Layout.NCHW, 0, tuple(one.shape[2:])), (56, 56))
        for name, one in (("middle", middle), ("fine", fine))
    )
    state = State(
        features=features.detach(),
        weights=torch.randn(1, 3, 6, generator=generator),
        pyramid=tuple(stage.tensor for stage in stages),
        backward=Backward(features, stages),
        images=random(2, 3, 56, 56),
        resize=Geometry.identity((56, 56)).resize,
    )
    result = preset(name)(state)
    if "crf" in name:  # probabilities, which need not reach 0 and 1
        assert result.maps.amin((2, 3)).lt(0.1).all() and result.maps.amax((2, 3)).gt(0.9).all()
    else:
        assert result.maps.amin((2, 3)).eq(0).all() and result.maps.amax((2, 3)).eq(1).all()
    assert result.masks.equal(result.maps > result.thresholds[..., None, None])
    assert result.masks.flatten(2).any(-1).all()
    factory, description = PRESETS[name]
    assert isinstance(factory(), Pipeline)
    assert "\n" not in description and description.endswith(".")


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["cam"]


@pytest.mark.parametrize(("name", "meant"), [("rcm", "rcam"), ("CAM", "cam"), ("adaptiv", "adaptive")])
def test_unknown_name_lists_the_names_and_the_closest(name, meant):
    with pytest.raises(PipelineError) as error:
        preset(name)
    assert f"There is no pipeline {name!r}. Did you mean {meant!r}?" in str(error.value)
    assert all(repr(known) in str(error.value) for known in PRESETS)


def test_name_unlike_any_other_gets_no_guess():
    with pytest.raises(PipelineError) as error:
        as_pipeline("zzz")
    assert "Did you mean" not in str(error.value)


def test_as_pipeline():
    pipeline = preset("cam")
    assert as_pipeline(pipeline) is pipeline
    assert repr(as_pipeline("rcam")) == repr(preset("rcam"))
    assert repr(as_pipeline(NWC())) == repr(Pipeline([NWC()]))
    assert repr(as_pipeline([NWC(), PaS(90)])) == repr(Pipeline([NWC(), PaS(90)]))


@pytest.mark.parametrize("value", [None, 3, NWC, ["cam"]])
def test_as_pipeline_refuses_what_is_none(value):
    with pytest.raises(PipelineError, match="step"):
        as_pipeline(value)
