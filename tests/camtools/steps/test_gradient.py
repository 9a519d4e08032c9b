"""Gradient maps: the formulas by hand, other libraries on the same layer, and a model that is left alone."""

import copy
import threading

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import camtools
from camtools import Pipeline
from camtools.engine import Engine
from camtools.errors import ModelError, PipelineError
from camtools.model.backward import Backward
from camtools.model.layout import Layout
from camtools.model.pyramid import LevelSpec, StageOutput
from camtools.pipeline import named_pipelines
from camtools.steps import CAM, NWC, Affinity, Gradient, State
from camtools.steps.gradient import METHODS, geometric_mean

# --- by hand --------------------------------------------------------------------------------------------------------

# Two channels on 2 x 2 cells; F is one cell, F_c = sum_i t_ci A_ci, and W = (2, -1), so that g_c = W_c t_c.
A = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[-1.0, 1.0], [2.0, 4.0]]]])
T = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]], [[1.0, -3.0], [-1.0, 0.5]]]])
W = torch.tensor([[[2.0, -1.0]]])
# so g = [[2, -2], [0, 4]] and [[-1, 3], [1, -1/2]], and A g = [[2, -4], [0, 0]] and [[1, 3], [2, -2]]
BY_HAND = {
    "product": [3, 3, 2, 0],
    "hirescam": [3, 0, 2, 0],
    "layercam": [2, 3, 2, 0],
    "gradcam": [1 - 0.625, 2 + 0.625, 3 + 1.25, 2.5],  # the means of g are 1 and 5/8
    # both channels of A sum to 6: alpha is 1/14, -, -, 1/26 where g is positive, and -, 1/20, 1/8, -
    "gradcam++": [w0 * a0 + w1 * a1 for w0, w1 in [(2 / 14 + 4 / 26, 3 / 20 + 1 / 8)] for a0, a1 in
                  [(1, -1), (2, 1), (3, 2), (0, 4)]],
    "bagcams": [1 + 2, 6, 4, 0],  # the means of A g + 1 are 1/2 and 2
}  # fmt: skip


def hand_state(weights=W, factor=1.0):
    stage = A.clone().requires_grad_()
    features = (stage * T * factor).sum((2, 3), keepdim=True)
    output = StageOutput(stage, LevelSpec("early", Layout.NCHW, 0, (2, 2)), (4, 4))
    backward = Backward(features, (output,))
    return State(features.detach(), weights, pyramid=(output.tensor,), backward=backward)


@pytest.mark.parametrize("method", METHODS)
def test_by_hand(method):
    maps = Gradient(method, 1)(hand_state()).maps
    torch.testing.assert_close(maps, torch.tensor(BY_HAND[method]).float().view(1, 1, 2, 2))


def test_by_hand_where_the_gradient_does_not_change_sign_with_the_logit():
    """The logit is 2 (1 - 2) - (-1 - 3 - 2 + 2) = 2 at first; with the bias that nobody sees its sign means nothing."""
    state = hand_state(-W)
    expected = [0 + 0, 4 + 0, 0, 2]  # of -A g
    torch.testing.assert_close(Gradient("product", 1)(state).maps.flatten(), torch.tensor(expected).float())


def test_by_hand_of_several_classes():
    weights = torch.cat([W, torch.tensor([[[1.0, 0.0]]])], 1)
    maps = Gradient("product", 1)(hand_state(weights)).maps
    torch.testing.assert_close(maps[0, 0].flatten(), torch.tensor([3.0, 3, 2, 0]))
    torch.testing.assert_close(maps[0, 1].flatten(), torch.tensor([1.0, 0, 0, 0]))


def test_by_hand_weights_that_vary_over_positions_and_a_mean_over_four():
    """F = t A on 2 x 2 cells, of which one has a weight: the gradient is there alone, a quarter of w t."""
    stage = A.clone().requires_grad_()
    output = StageOutput(stage, LevelSpec("early", Layout.NCHW, 0, (2, 2)), (4, 4))
    weights = torch.zeros(1, 1, 2, 2, 2)
    weights[0, 0, :, 1, 0] = torch.tensor([5.0, -4.0])
    state = State((A * T), weights, pyramid=(A,), backward=Backward(stage * T, (output,)))
    expected = torch.zeros(1, 1, 2, 2)
    expected[0, 0, 1, 0] = -4 * -1 * 2 / 4  # of the second channel; the first has t = 0
    torch.testing.assert_close(Gradient("product", 1)(state).maps, expected)


def test_the_geometric_mean_by_hand():
    coarse = torch.tensor([[[[0.0, 4.0]]]])  # 0 and 1, bicubic over four cells: 0, 0.2265625, 0.7734375, 1
    fine = torch.tensor([[[[2.0, 1.0, 1.5, 0.0]]]])
    cubic = torch.tensor([0.0, 0.2265625, 0.7734375, 1.0])
    expected = (cubic * torch.tensor([1.0, 0.5, 0.75, 0.0])).sqrt()
    torch.testing.assert_close(geometric_mean([coarse, fine]).flatten(), expected)
    torch.testing.assert_close(geometric_mean([fine * 3 + 7, fine]).flatten(), fine.flatten() / 2)


@pytest.mark.parametrize("useless", [torch.ones(1, 1, 1, 4), torch.full((1, 1, 1, 4), torch.nan)])
def test_a_map_that_says_nothing_has_no_say(useless):
    fine = torch.tensor([[[[2.0, 1.0, 1.5, 0.0]]]])
    torch.testing.assert_close(geometric_mean([useless, fine]), fine / 2)
    assert geometric_mean([useless, useless]).eq(0).all()


# --- of networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet():
    """MobileNetV2, whose ReLUs work in place; random weights."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=5, dropout=0).eval()
    for module in model.modules():  # layers that keep the scale, so that no gradient is tiny
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(-1, 1)
    return model.requires_grad_(False)


def images(batch=2, side=96):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([[1, 4], [0, 2]])


def by_autograd(model, layer, x, targets):
    """A and d logit / d A by a hook and one backward per image and class, (B, C, h, w) and (B, K', C, h, w)."""
    kept = {}

    def hook(module, inputs, output):
        kept["a"] = output
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.enable_grad():
        logits = model(x.clone().requires_grad_())
    handle.remove()
    rows = [
        torch.stack([torch.autograd.grad(logits[b, k], kept["a"], retain_graph=True)[0][b] for k in row.tolist()])
        for b, row in enumerate(targets)
    ]
    return kept["a"].detach(), torch.stack(rows)


def run(model, *steps, x=None, targets=TARGETS):
    engine = Engine(model, [Pipeline(steps)])
    return engine.maps(engine.forward(images() if x is None else x), targets)[0].raw_maps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("level", "layer"), [(1, "features.13"), (2, "features.6")])
def test_equals_autograd_of_the_logit(mobilenet, method, level, layer):
    maps = run(mobilenet, Gradient(method, level))
    features, gradients = by_autograd(mobilenet, layer, images(), TARGETS)
    expected = torch.stack([METHODS[method](features, gradients[:, k]) for k in range(2)], 1)
    assert maps.dtype == torch.float32 and expected.amax() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.amax()))


def test_at_f_the_methods_are_those_known(mobilenet):
    cam, nwc = run(mobilenet, CAM(relu=True)) / 9, run(mobilenet, NWC(), CAM()) / 9  # 3 x 3 cells
    torch.testing.assert_close(run(mobilenet, Gradient("product", 0)), nwc)
    for method in ("hirescam", "gradcam"):
        torch.testing.assert_close(run(mobilenet, Gradient(method, 0)), cam, atol=1e-6, rtol=1e-4)


def test_several_levels_are_the_mean_of_each(mobilenet):
    parts = [run(mobilenet, Gradient("product", level)) for level in (0, 1, 2)]
    torch.testing.assert_close(run(mobilenet, Gradient("product", (0, 1, 2))), geometric_mean(parts))
    assert torch.equal(run(mobilenet, Gradient("product", [1, 0])), run(mobilenet, Gradient()))


def test_weights_steps_have_their_part(mobilenet):
    x = images()
    maps = run(mobilenet, NWC(), Gradient("hirescam", 1), x=x)
    clamped = copy.deepcopy(mobilenet)
    clamped.classifier[1].weight.data.clamp_min_(0)
    torch.testing.assert_close(maps, run(clamped, Gradient("hirescam", 1), x=x))
    assert not torch.allclose(maps, run(mobilenet, Gradient("hirescam", 1), x=x))


def test_one_forward_whatever_the_classes_and_pipelines(mobilenet):
    engine = Engine(mobilenet, [Pipeline(Gradient(method)) for method in METHODS])
    engine.forward(images())
    runs = []
    with mobilenet.features[3].register_forward_hook(lambda *_: runs.append(1)):
        engine.maps(engine.forward(images()), TARGETS)
    assert len(runs) == 1


def test_only_the_layers_after_the_stage_have_a_graph(mobilenet):
    engine = Engine(mobilenet.requires_grad_(True), [Pipeline(Gradient())])
    engine.forward(images())
    seen = {}
    handles = [
        mobilenet.features[place].register_forward_hook(
            lambda m, i, o, place=place: seen.update({place: o.requires_grad})
        )
        for place in (3, 12, 14, 18)
    ]
    engine.maps(engine.forward(images()), TARGETS)
    for handle in handles:
        handle.remove()
    mobilenet.requires_grad_(False)
    assert seen == {3: False, 12: False, 14: True, 18: True}
    assert all(parameter.grad is None for parameter in mobilenet.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_every_mode_and_nothing_is_left(mobilenet, context):
    expected = run(mobilenet, Gradient())
    before = {name: value.clone() for name, value in mobilenet.state_dict().items()}
    with context():
        maps, enabled = run(mobilenet, Gradient()), torch.is_grad_enabled()
        assert enabled == (context is torch.enable_grad)
    assert torch.equal(maps, expected) and not maps.requires_grad and not maps.is_inference()
    assert all(torch.equal(value, before[name]) for name, value in mobilenet.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in mobilenet.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in mobilenet.parameters())


def test_parameters_that_learn_keep_their_gradients(mobilenet):
    model = copy.deepcopy(mobilenet).requires_grad_(True)
    model(images()).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(run(model, Gradient()), run(mobilenet, Gradient()))
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_gradients_that_would_vanish(dtype):
    """The weights are around 1e-3, a 64th of which goes back to each cell: float16 has few digits left there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    model[-1].weight.data *= 3e-3
    x = torch.randn(2, 3, 32, 32)
    expected = run(model, Gradient("product", 1), x=x)
    maps = run(copy.deepcopy(model).to(dtype), Gradient("product", 1), x=x)
    assert maps.dtype == torch.float32 and expected.amax() > 0
    error = (maps - expected).abs().amax() / expected.amax()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_threads_take_turns(mobilenet):
    expected = [run(mobilenet, Gradient(), targets=torch.full((2, 1), k)) for k in range(5)]
    found = [None] * 5

    def work(k):
        found[k] = run(mobilenet, Gradient(), targets=torch.full((2, 1), k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Severed(nn.Module):
    """Forgets its graph between the stage and F."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, 2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.pool(self.late(self.early(x).detach())).flatten(1))


def test_a_model_without_a_way_back():
    cam_model = camtools.wrap(Severed().eval(), spec=camtools.model.FeatureSpec("late", classifier="fc"))
    engine = Engine(cam_model, [Pipeline(Gradient())])
    forward = engine.forward(torch.randn(2, 3, 32, 32))
    with pytest.raises(
        ModelError, match="do not depend on the stage 'early' through autograd, so there is no gradient"
    ):
        engine.maps(forward, TARGETS.clamp_max(2))


def test_where_the_network_has_no_earlier_stage(tiny):
    x, targets = torch.randn(2, 3, 16, 20), TARGETS.clamp_max(2)
    expected = run(tiny, NWC(), CAM(), x=x, targets=targets) / 20
    for levels in (1, 2, (0, 1)):
        torch.testing.assert_close(run(tiny, Gradient("product", levels), x=x, targets=targets), expected)


def test_linearised_heads(mobilenet):
    """A hidden layer between pooling and classifier: W is the logit's gradient at F, the chain rule does the rest."""
    model = copy.deepcopy(mobilenet)
    model.classifier = nn.Sequential(nn.Linear(1280, 16), nn.Tanh(), nn.Linear(16, 5))
    maps = run(model.eval(), Gradient("hirescam", 1))
    features, gradients = by_autograd(model, "features.13", images(), TARGETS)
    expected = torch.stack([METHODS["hirescam"](features, gradients[:, k]) for k in range(2)], 1)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.amax()))


def test_vision_transformers():
    """The gradient at the block's tokens, and a map that Affinity spreads on the one grid that there is."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5, global_pool="avg").eval()  # all of the logit comes by F
    x, targets = images(2, 160), TARGETS
    maps = run(model, Gradient("product", 1), x=x)
    tokens, gradients = by_autograd(model, "blocks.3", x, targets)
    expected = (tokens[:, None] * gradients).clamp_min(0).sum(3)[:, :, 1:].unflatten(2, (10, 10))
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * float(expected.amax()))
    model = timm.create_model("test_vit", num_classes=5).eval()
    engine = Engine(model, [Pipeline([Gradient(), Affinity(2, 3)])])
    state = engine.maps(engine.forward(x), targets)[0]
    assert state.maps.shape == state.raw_maps.shape == (2, 2, 10, 10)
    spread, raw = ((one - one.mean((2, 3), keepdim=True)).square().mean() for one in (state.maps, state.raw_maps))
    assert 0 < spread < raw, "a mean over positions varies less"


# --- of others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("gradcam", "GradCAM"), ("gradcam++", "GradCAMPlusPlus"), ("hirescam", "HiResCAM"), ("layercam", "LayerCAM")],
)
def test_agrees_with_pytorch_grad_cam(method, theirs):
    library = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam, of the extra 'bench'")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    model.fc.weight.data *= 1e4  # theirs adds 1e-6 where Grad-CAM++ divides by g squared
    x, targets = images(2, 64), torch.tensor([3, 1])
    ours = run(model, Gradient(method, 1), x=x, targets=targets[:, None])[:, 0].numpy()
    with getattr(library, theirs)(model=model, target_layers=[model.layer3]) as cam:
        classes = [ClassifierOutputTarget(k) for k in targets.tolist()]
        cam(input_tensor=x, targets=classes)
        kept = cam.activations_and_grads
        a, g = kept.activations[0].detach().numpy(), kept.gradients[0].detach().numpy()
        expected = np.maximum(cam.get_cam_image(x, model.layer3, classes, a, g, False), 0)
    top = expected.max((1, 2), keepdims=True)
    assert (top > 0).all()
    np.testing.assert_allclose(ours / top, expected / top, atol=1e-4)


# --- as text, and errors --------------------------------------------------------------------------------------------


def test_as_text():
    text = 'Gradient("product"),Affinity(2,3)'
    assert named_pipelines(text)[text].summary.startswith("Gradient(product, (0, 1)), Affinity(2, 3, 1024), MinMax")
    assert repr(Gradient("layercam", 2)) == "Gradient(method='layercam', levels=2)"
    pipeline = named_pipelines('a=Gradient("bagcams", levels=(1, 2))')["a"]
    assert pipeline.needs_gradients == pipeline.needs_pyramid == 2
    assert Pipeline([Gradient("product", 1), Affinity(2)]).needs_pyramid == 2
    assert Pipeline([Affinity(2)]).needs_gradients == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "cam"}, r"Gradient\(method='cam'\): method must be one of 'product', 'hirescam', 'layercam', "),
        ({"levels": -1}, r"Gradient\(levels=-1\): levels must be a whole number of at least 0"),
        ({"levels": "1"}, r"Gradient\(levels='1'\): levels must be a whole number of at least 0"),
        ({"levels": (0, 1.5)}, r"Gradient\(levels=1.5\): levels must be a whole number"),
        ({"levels": ()}, r"Gradient\(levels=\(\)\): levels must be one or more different whole numbers"),
        ({"levels": (1, 1)}, r"Gradient\(levels=\(1, 1\)\): levels must be one or more different whole numbers"),
    ],
)
def test_arguments_that_are_none(arguments, words):
    with pytest.raises(PipelineError, match=words):
        Gradient(**arguments)


def test_a_state_without_gradients_says_where_they_come_from():
    state = State(torch.rand(1, 2, 3, 3), torch.rand(1, 1, 2), pyramid=(torch.rand(1, 2, 6, 6),))
    with pytest.raises(PipelineError, match=r"activations\(x, pyramid=1, gradients=1\)"):
        Gradient()(state)
    assert Gradient("product", 0)(state).maps.shape == (1, 1, 3, 3), "F itself needs none"
