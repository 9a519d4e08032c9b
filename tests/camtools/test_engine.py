"""The engine: one forward for all pipelines, their maps on the grid, and their steps on pixels."""

import pytest
import torch
from torch import nn

from camtools import InputError, ModelError, Pipeline, Preprocess, preset, wrap
from camtools.engine import Engine
from camtools.pipeline.pixels import groups, on_pixels
from camtools.steps import NWC, MinMax

X = torch.randn(4, 3, 16, 20, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]])


def double(maps):
    return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_pipelines_share_one_forward(tiny):
    runs = []
    tiny.register_forward_hook(lambda *_: runs.append(1))
    engine = Engine(tiny, [preset("cam"), preset("rcam"), preset("adaptive")])
    engine.forward(X)  # the first locates the features
    runs.clear()
    forward = engine.forward(X)
    states = engine.maps(forward, TARGETS)
    assert len(runs) == 1 and len(states) == 3
    torch.testing.assert_close(forward.logits, tiny(X))
    own = wrap(tiny).activations(X).maps(TARGETS)
    torch.testing.assert_close(states[0].raw_maps, own)
    assert states[0].labels is TARGETS
    assert not torch.equal(states[1].raw_maps, own), "NWC has only positive weights"


def test_states_are_those_of_the_pipelines_alone(tiny):
    pipelines = [preset("cam"), Pipeline([NWC()])]
    together = Engine(tiny, pipelines)
    states = together.maps(together.forward(X), TARGETS)
    for pipeline, state in zip(pipelines, states, strict=True):
        alone = Engine(tiny, [pipeline])
        [expected] = alone.maps(alone.forward(X), TARGETS)
        assert torch.equal(state.maps, expected.maps) and torch.equal(state.raw_maps, expected.raw_maps)


def test_pixels_of_some_images_are_those_of_all(tiny):
    engine = Engine(tiny, [preset("adaptive")])
    [state] = engine.maps(engine.forward(X), TARGETS)
    whole = on_pixels(engine.pipelines[0], state, range(4), double)
    assert whole.maps.shape == (4, 2, 8, 10)
    for rows in ([0], [1, 3], [2]):
        part = on_pixels(engine.pipelines[0], state, rows, double)
        for field in ("maps", "raw_maps", "masks", "thresholds"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[rows]), field


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_are_float32_and_without_gradients_whatever_surrounds_the_call(tiny, dtype):
    engine = Engine(tiny.to(dtype), [Pipeline([MinMax()])])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        [state] = engine.maps(engine.forward(X), TARGETS)
        done = on_pixels(engine.pipelines[0], state, range(4), double)
    assert state.maps.dtype == done.maps.dtype == torch.float32
    assert not done.maps.requires_grad and not done.maps.is_inference()


def test_the_model_is_left_as_it_was(tiny):
    tiny.train()
    tiny.conv.eval()
    engine = Engine(tiny, [preset("cam")])
    engine.maps(engine.forward(X), TARGETS)
    assert tiny.training and not tiny.conv.training and tiny.fc.training
    assert all(parameter.grad is None for parameter in tiny.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


@pytest.mark.parametrize(
    ("names", "shown"), [(None, "image 1, image 2, image 3 and 1 more"), (list("abcde"), "b, c, d and 1 more")]
)
def test_scores_that_are_no_numbers_are_named(tiny, names, shown):
    bad = torch.zeros(5, 3, 16, 16)
    bad[1:] = torch.nan
    with pytest.raises(ModelError, match=rf"NaN or infinite class scores for {shown}\. Check its weights"):
        Engine(tiny, [preset("cam")]).forward(bad, names=names)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_a_batch_size_that_is_none(tiny, size):
    with pytest.raises(InputError, match=rf"batch_size={size!r}: expected a whole number of at least 1"):
        Engine(tiny, [preset("cam")], batch_size=size)


def test_what_the_model_does_not_tell_is_imagenets(tiny):
    engine = Engine(tiny, [preset("cam")])
    assert engine.transform == Preprocess.imagenet() and engine.class_names is None and engine.name(2) == "2"
    assert Engine(tiny, [preset("cam")], class_names=["a", "b", "c"]).name(2) == "c"


@pytest.mark.parametrize(
    ("keys", "most", "expected"),
    [
        ([], None, []),
        ("abcab", None, [[0, 3], [1, 4], [2]]),
        ("aaaab", 2, [[0, 1], [2, 3], [4]]),
        ([(1, 2), (1, 2), None], 8, [[0, 1], [2]]),
    ],
)
def test_groups(keys, most, expected):
    assert groups(list(keys), most) == expected


class Picky(nn.Module):
    """Complains in its own words about what it does not take."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.fc, self.error = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), error

    def forward(self, x):
        if x.shape[-1] != 224:
            raise self.error
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("error", [AssertionError("wrong size"), TypeError("x"), RuntimeError("a\nb"), IndexError()])
def test_the_models_own_complaint_becomes_an_input_error(error):
    engine = Engine(Picky(error), [preset("cam")])
    words = rf"Picky \(generic\) can't be run on inputs of 3x16x20 \({type(error).__name__}.*configuration 3x224x224"
    with pytest.raises(InputError, match=words):
        engine.forward(X)
