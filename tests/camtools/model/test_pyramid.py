"""The earlier stages: which layers they are, that they are what a hook sees, and that the model is left alone."""

import copy
import re
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from torch import nn

import camtools
from camtools.errors import ModelError
from camtools.model import FeatureSpec
from camtools.model.layout import Layout
from camtools.model.output_stride import set_output_stride
from camtools.model.pyramid import LevelSpec, Observer, PyramidCapture


class Stepped(nn.Module):
    """Four convolutions that halve the image; the ReLU after the second changes its output in place."""

    def __init__(self, classes=3):
        super().__init__()
        widths = [3, 4, 5, 6, 7]
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.norm = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(7, classes)

    def forward(self, x):
        x = self.relu(self.norm(self.conv[1](self.conv[0](x))))
        return self.fc(self.pool(self.conv[3](self.conv[2](x))).flatten(1))


class Late(nn.Module):
    """F on 8 x 8 after a stage on 16 x 16; then 64 tokens attend to each other, 64 x 64, and nothing else does."""

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(3, 4, 4, 4)
        self.late = nn.Conv2d(4, 8, 2, 2)
        self.block = nn.Module()
        self.block.attention = SelfAttention(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.late(self.early(x))
        x = x + self.block.attention(x.flatten(2).mT).mT.view_as(x)
        return self.fc(self.pool(x).flatten(1))


class SelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.drop((q @ k.mT)[:, None].softmax(-1))[:, 0] @ v


def found(model, size=224, count=3, batch=1):
    """What `activations` finds with its own input, and the layers' names, NHWC ones with a star."""
    cam_model = camtools.wrap(model.eval())
    with torch.no_grad():
        activations = cam_model.activations(torch.randn(batch, 3, size, size), pyramid=count)
    names = [stage.layer + "*" * (stage.layout == Layout.NHWC) for stage in cam_model.pyramid[:count]]
    return names, [tuple(one.shape[1:]) for one in activations.pyramid], activations


# --- which layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "grids"),
    [
        ("resnet18", ["layer3", "layer2", "layer1"], [14, 28, 56]),
        ("mobilenet_v2", ["features.13", "features.6", "features.3"], [14, 28, 56]),
        ("densenet121", ["features.denseblock3", "features.denseblock2", "features.denseblock1"], [14, 28, 56]),
        ("convnext_tiny", ["features.5", "features.3", "features.1"], [14, 28, 56]),
        ("swin_t", ["features.5*", "features.3*", "features.1*"], [14, 28, 56]),
        ("alexnet", ["features.11", "features.4", "features.1"], [13, 27, 55]),
        ("shufflenet_v2_x0_5", ["stage3", "stage2", "maxpool"], [14, 28, 56]),
    ],
)
def test_of_torchvision(name, layers, grids):
    names, shapes, activations = found(torchvision.models.get_model(name, weights=None))
    assert names == layers
    assert [shape[1:] for shape in shapes] == [(side, side) for side in grids]
    assert activations.features.shape[2] * 1.5 <= grids[0]


@pytest.mark.parametrize(
    ("name", "size", "layers", "grids", "settings"),
    [
        ("test_resnet", 160, ["layer3", "layer2", "layer1"], [10, 20, 40], {}),
        ("test_efficientnet", 160, ["blocks.3", "blocks.2", "blocks.1"], [10, 20, 40], {}),
        ("test_convnext", 160, ["stages.2", "stages.1", "stages.0"], [10, 20, 40], {}),
        ("test_mambaout", 160, ["stages.2*", "stages.1*", "stages.0*"], [10, 20, 40], {}),
        # attention of 49 tokens in a window that is the whole grid, an image of 49 x 49
        (
            "swin_tiny_patch4_window7_224",
            224,
            ["layers.2*", "layers.1*", "layers.0*"],
            [14, 28, 56],
            {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
        ),
        # position biases of windows, 15 x 15, the coarsest grid above F's 8 x 8
        (
            "swinv2_tiny_window8_256",
            256,
            ["layers.2*", "layers.1*", "layers.0*"],
            [16, 32, 64],
            {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
        ),
        # attention between channels: 12 x 12 and 22 x 22
        ("edgenext_xx_small", 256, ["stages.2", "stages.1", "stages.0"], [16, 32, 64], {}),
        ("visformer_tiny", 224, ["stage2", "stage1", "stem"], [14, 28, 112], {}),
        ("coat_tiny", 224, ["cpe3.proj", "cpe2.proj", "cpe1.proj"], [14, 28, 56], {}),
    ],
)
def test_of_timm(name, size, layers, grids, settings):
    names, shapes, _ = found(timm.create_model(name, **settings), size)
    assert names == layers
    assert [shape[1:] for shape in shapes] == [(side, side) for side in grids]


STAGES = ["features.13", "features.6", "features.3"]


def slim():
    """MobileNetV2 with an eighth of the channels."""
    return torchvision.models.mobilenet_v2(width_mult=0.125).eval()


@pytest.mark.parametrize("dilate", [True, False])
@pytest.mark.parametrize(("stride", "grids"), [(16, [14, 28, 56]), (8, [28, 28, 56])])
def test_stages_are_the_same_without_strides(stride, grids, dilate):
    """Else presets look at edges and textures where they had looked at parts: `best` lost 11 points on birds."""
    names, shapes, activations = found(set_output_stride(slim(), stride, dilate=dilate))
    assert names == STAGES and [shape[1:] for shape in shapes] == [(side, side) for side in grids]
    assert activations.features.shape[2] == 224 // stride


def test_stages_of_a_network_with_branches_without_strides():
    """The convolution of a ResNet's shortcut loses its stride as well, and that counts once."""
    names, shapes, _ = found(set_output_stride(torchvision.models.resnet18().eval(), 8))
    assert names == ["layer3", "layer2", "layer1"] and [shape[1] for shape in shapes] == [28, 28, 56]


def test_strides_taken_out_one_after_the_other():
    model = slim()
    twice = set_output_stride(set_output_stride(model, 16), 8)
    wanted = found(set_output_stride(model, 8))
    assert found(twice)[:2] == wanted[:2]


def test_stages_of_networks_that_are_built_with_dilations():
    bottleneck = torchvision.models.resnet.Bottleneck
    built = torchvision.models.ResNet(bottleneck, [2] * 4, replace_stride_with_dilation=[False, True, True])
    for model in (built, timm.create_model("resnet18", output_stride=8)):
        names, shapes, _ = found(model, 160)
        assert names == ["layer3", "layer2", "layer1"] and [shape[1] for shape in shapes] == [20, 20, 40]


def test_of_a_layer_before_the_last_stride_that_was_taken_out():
    model = set_output_stride(slim(), 8)
    for spec in (FeatureSpec("features.13"), FeatureSpec("features.14", side="input")):
        wrapped = camtools.wrap(model, spec=spec)
        wrapped.activations(torch.randn(1, 3, 224, 224), pyramid=9)
        assert [stage.layer for stage in wrapped.pyramid] == ["features.6", "features.3", "features.1"]


def test_of_networks_side_by_side_the_stages_of_that_with_f():
    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return self.first(x) + self.second(x)

    networks = [set_output_stride(slim(), 8) for _ in range(2)]
    wrapped = camtools.wrap(Two(*networks), spec=FeatureSpec("second.features"))
    wrapped.activations(torch.randn(1, 3, 224, 224), pyramid=3)
    assert [stage.layer for stage in wrapped.pyramid[:3]] == [f"second.{layer}" for layer in STAGES]


def test_of_a_network_that_runs_twice_the_same_stages():
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + self.inner(x.flip(3))

    model = set_output_stride(slim(), 8)
    wrapped = camtools.wrap(Twice(model), spec=FeatureSpec("inner.features"))
    wrapped.activations(torch.randn(1, 3, 224, 224), pyramid=3)
    assert [stage.layer for stage in wrapped.pyramid[:3]] == [f"inner.{layer}" for layer in STAGES]


def test_of_parallel_branches_the_finer_ones():
    names, shapes, _ = found(timm.create_model("hrnet_w18_small"), 128)
    assert names == ["stage4"] * 3
    assert shapes == [(64, 8, 8), (32, 16, 16), (16, 32, 32)]


ONE_GRID = {
    "timm": (lambda: timm.create_model("test_vit"), ["blocks.3", "blocks.2", "blocks.0"], 1),  # of 6
    "torchvision": (
        lambda: torchvision.models.VisionTransformer(160, 16, 4, 2, 32, 64),
        [f"encoder.layers.encoder_layer_{number}" for number in (2, 1, 0)],
        1,
    ),
    "cait": (lambda: timm.create_model("cait_xxs24_224", depth=2, img_size=160), ["blocks.0"], 0),
    "mixer": (
        lambda: timm.create_model("mixer_s32_224", img_size=160),
        ["blocks.5", "blocks.3", "blocks.1"],
        0,
    ),
}


@pytest.mark.parametrize("name", ONE_GRID)
def test_of_networks_with_one_grid_blocks_stand_in(name):
    """At 3/4, 1/2 and 1/4 of the depth, without the tokens before the positions."""
    make, layers, prefix = ONE_GRID[name]
    torch.manual_seed(0)
    model = make().eval()
    cam_model, x = camtools.wrap(model), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        activations = cam_model.activations(x, pyramid=3)
        assert [stage.layer for stage in cam_model.pyramid] == layers
        for layer, tensor in zip(layers, activations.pyramid, strict=True):
            seen = []
            with model.get_submodule(layer).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.clone())):
                model(x)
            expected = seen[0][:, prefix:].mT.unflatten(2, activations.features.shape[2:])
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_attention_over_positions_is_no_stage():
    """64 x 64 affinities of 64 positions are on a finer grid than F, and later than all stages."""
    names, shapes, _ = found(Late(), 64)
    assert names == ["early"] and shapes == [(4, 16, 16)]


def test_how_many():
    model = camtools.wrap(Stepped().eval())
    x = torch.randn(2, 3, 64, 64)
    shapes = [[tuple(one.shape) for one in model.activations(x, pyramid=n).pyramid] for n in range(5)]
    assert shapes[3] == shapes[4] == [(2, 6, 8, 8), (2, 5, 16, 16), (2, 4, 32, 32)]
    assert shapes[:3] == [shapes[3][:n] for n in range(3)]
    assert model.activations(x).pyramid == ()


def test_not_square():
    shapes = [one.shape for one in camtools.wrap(Stepped().eval()).activations(torch.randn(2, 3, 64, 96), 2).pyramid]
    assert shapes == [(2, 6, 8, 12), (2, 5, 16, 24)]


def test_found_once_and_good_for_other_sizes():
    model = camtools.wrap(Stepped().eval())
    model.activations(torch.randn(1, 3, 64, 64), pyramid=2)
    known = model.pyramid
    assert [one.shape for one in model.activations(torch.randn(3, 3, 96, 160), pyramid=2).pyramid] == [
        (3, 6, 12, 20),
        (3, 5, 24, 40),
    ]
    assert model.pyramid is known


def test_of_a_layer_of_your_own_choice_only_what_is_finer():
    model = camtools.wrap(Stepped().eval(), spec=FeatureSpec("conv.2"))
    pyramid = model.activations(torch.randn(1, 3, 64, 64), pyramid=9).pyramid
    assert [one.shape[1:] for one in pyramid] == [(5, 16, 16), (4, 32, 32)]


def test_locate_looks_anew():
    inner = Stepped().eval()
    model = camtools.wrap(inner)
    x = torch.randn(1, 3, 64, 64)
    assert len(model.activations(x, pyramid=9).pyramid) == 3
    inner.conv[2].stride = (1, 1)
    model.locate(x)
    assert [one.shape[1:] for one in model.activations(x, pyramid=9).pyramid] == [(5, 16, 16), (4, 32, 32)]


def test_a_layer_that_is_gone_is_named():
    inner = Stepped().eval()
    model = camtools.wrap(inner)
    model.activations(torch.randn(1, 3, 64, 64), pyramid=2)
    inner.norm = nn.Identity()
    inner.batch = inner.relu
    del inner.relu
    inner.forward = lambda x: inner.fc(
        inner.pool(inner.conv[3](inner.conv[2](inner.conv[1](inner.conv[0](x))))).flatten(1)
    )
    with pytest.raises(ModelError) as error:
        model.activations(torch.randn(1, 3, 64, 64), pyramid=2)
    assert str(error.value) == (
        "Stepped has no layer 'relu', where one of its earlier stages was. If the model was edited after it was "
        "wrapped, wrap it again"
    )
    assert not inner.conv[2]._forward_hooks, "the stage that is still there has no hook left on it"
    assert model.activations(torch.randn(1, 3, 64, 64)).pyramid == ()


# --- what is recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (torchvision.models.get_model("mobilenet_v2", weights=None), 128),
        (timm.create_model("test_mambaout"), 160),
        (timm.create_model("test_resnet"), 160),
        (Stepped(), 64),
    ],
    ids=["torchvision", "NHWC", "timm", "own"],
)
def test_equals_what_a_hook_sees(model, size):
    cam_model = camtools.wrap(model.eval())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        pyramid = cam_model.activations(x, pyramid=3).pyramid
        for stage, tensor in zip(cam_model.pyramid, pyramid, strict=False):
            seen = []
            handle = model.get_submodule(stage.layer).register_forward_hook(
                lambda module, args, output, seen=seen: seen.append(output.clone())
            )
            model(x)
            handle.remove()
            expected = seen[-1].permute(0, 3, 1, 2) if stage.layout == Layout.NHWC else seen[-1]
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_an_in_place_relu_after_a_stage_does_not_change_it():
    inner = Stepped().eval()
    x = torch.randn(2, 3, 64, 64)
    with PyramidCapture(inner, (LevelSpec("norm", Layout.NCHW, 0, (16, 16)),)) as capture, torch.no_grad():
        inner(x)
        expected = inner.norm(inner.conv[1](inner.conv[0](x)))
    recorded = capture.stages((64, 64))[0].tensor
    assert (recorded < 0).any()
    torch.testing.assert_close(recorded, expected, rtol=0, atol=0)


def test_of_several_calls_the_last():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    model = Twice()
    x = torch.randn(1, 3, 8, 8)
    with PyramidCapture(model, (LevelSpec("conv", Layout.NCHW, 0, (8, 8)),)) as capture:
        out = model(x)
    assert capture.stages((8, 8))[0].tensor.equal(out) and not capture.stages((8, 8))[0].tensor.requires_grad


def test_a_layer_that_did_not_run_is_left_out():
    model = nn.ModuleDict({"a": nn.Conv2d(3, 2, 1), "b": nn.Conv2d(3, 2, 1)})
    specs = tuple(LevelSpec(name, Layout.NCHW, 0, (8, 8)) for name in "ab")
    with PyramidCapture(model, specs) as capture:
        out = model["b"](torch.randn(1, 3, 8, 8))
    assert len(capture.stages((8, 8))) == 1 and capture.stages((8, 8))[0].tensor.equal(out)


def test_an_image_does_not_depend_on_its_batch():
    model = camtools.wrap(Stepped().eval())
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        whole, alone = model.activations(x, pyramid=2).pyramid, model.activations(x[1:2], pyramid=2).pyramid
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[1:2], other, atol=1e-6, rtol=1e-5)


def test_windows_and_tables_are_not_images():
    """An observer looks at one image, so that what has another first axis is no tensor of images."""
    observer = Observer(nn.ModuleDict({"a": nn.Identity()}), (64, 64))
    with observer:
        for shape in [(4, 16, 16, 8), (1, 4), (1, 64, 8), (1, 3, 1, 1)]:
            observer._model["a"](torch.zeros(shape))
        observer._model["a"](torch.zeros(1, 5, 16, 16, dtype=torch.int64))
    assert observer.pyramid((4, 4)) == ()
    with observer:
        observer._model["a"]([torch.zeros(1, 2, 8, 8), {"x": torch.zeros(1, 32, 32, 7)}])
    assert observer.pyramid((4, 4)) == (LevelSpec("a", "NCHW", 0, (8, 8)), LevelSpec("a", "NHWC", 1, (32, 32)))
    assert observer.pyramid((8, 8)) == (LevelSpec("a", "NHWC", 1, (32, 32)),)


# --- the model is left alone ----------------------------------------------------------------------------------------


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_looking_for_stages_leaves_no_trace(training):
    """In train mode the one forward is the caller's, and moves the running statistics once."""
    inner = Stepped().train(training)
    inner.fc.eval()
    other = copy.deepcopy(inner)
    x = torch.randn(4, 3, 64, 64)
    camtools.wrap(inner).activations(x, pyramid=2)
    other(x)
    assert hooks_of(inner) == [0] * len(hooks_of(inner))
    assert [m.training for m in inner.modules()] == [m.training for m in other.modules()]
    assert all(torch.equal(a, b) for a, b in zip(inner.buffers(), other.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inner.parameters(), other.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in inner.parameters())


def test_hooks_come_off_after_an_error():
    class Breaks(Stepped):
        sound = True

        def forward(self, x):
            out = super().forward(x)
            if not self.sound:
                raise RuntimeError("broken")
            return out

    for known in (False, True):
        inner = Breaks().eval()
        model = camtools.wrap(inner)
        model.activations(torch.randn(1, 3, 64, 64), pyramid=2 * known)
        inner.sound = False
        with pytest.raises(RuntimeError, match="broken"):
            model.activations(torch.randn(1, 3, 64, 64), pyramid=2)
        assert hooks_of(inner) == [0] * len(hooks_of(inner))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_without_stages_and_stages_have_none(training):
    inner = Stepped().train(training)
    other = copy.deepcopy(inner)
    x = torch.randn(4, 3, 64, 64)
    found = camtools.wrap(inner).activations(x, pyramid=2)
    assert not any(one.requires_grad for one in found.pyramid)
    found.maps(1).square().sum().backward()
    camtools.wrap(other).activations(x).maps(1).square().sum().backward()
    assert inner.conv[0].weight.grad.abs().sum() > 0
    for one, reference in zip(inner.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (reference.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, reference.grad, rtol=0, atol=0)


def test_under_inference_mode():
    inner = Stepped().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = camtools.wrap(inner).activations(x, pyramid=2).pyramid
    with torch.inference_mode():
        pyramid = camtools.wrap(inner).activations(torch.randn(2, 3, 64, 64).copy_(x), pyramid=2).pyramid
    assert all(torch.equal(one, other) for one, other in zip(pyramid, expected, strict=True))
    assert not any(one.is_inference() for one in pyramid)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_inside_wrappers(wrapper):
    inner = Stepped().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = camtools.wrap(inner).activations(x, pyramid=3).pyramid
    pyramid = camtools.wrap(wrapper(inner)).activations(x, pyramid=3).pyramid
    assert len(pyramid) == 3 and all(torch.equal(one, other) for one, other in zip(pyramid, expected, strict=True))


def test_linearised_heads_have_stages_too():
    inner = Stepped().eval()
    inner.fc = nn.Sequential(nn.Linear(7, 8), nn.GELU(), nn.Linear(8, 3))
    model = camtools.wrap(inner)
    x = torch.randn(2, 3, 64, 64)
    found = model.activations(x, pyramid=2)
    assert not found.decomposition.exact
    with torch.no_grad():
        early = inner.relu(inner.norm(inner.conv[1](inner.conv[0](x))))
        expected = [inner.conv[2](early), early]
    for one, other in zip(found.pyramid, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(found.maps([0, 1]), model.activations(x).maps([0, 1]))


def test_maps_and_logits_are_those_without_stages():
    model = camtools.wrap(Stepped().eval())
    x = torch.randn(2, 3, 64, 64)
    with_stages, without = model.activations(x, pyramid=3), model.activations(x)
    assert with_stages.logits.equal(without.logits) and with_stages.features.equal(without.features)
    assert with_stages.maps().equal(without.maps()) and with_stages.decomposition == without.decomposition
    assert not re.search("stages", repr(with_stages))


@pytest.mark.gpu
def test_on_cuda(cuda):
    inner = Stepped().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = camtools.wrap(inner).activations(x, pyramid=2).pyramid
    pyramid = camtools.wrap(copy.deepcopy(inner).to(cuda)).activations(x.to(cuda), pyramid=2).pyramid
    for one, other in zip(pyramid, expected, strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=1e-3)
