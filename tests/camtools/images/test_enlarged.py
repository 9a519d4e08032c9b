"""Maps from a larger input: the class from the model's own size, the map from the other, over the same image."""

import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

import camtools
from camtools import ModelError, Pipeline, Preprocess
from camtools.engine import Engine
from camtools.images.enlarged import enlarged, enlarged_size
from camtools.images.read import read_image
from camtools.steps import NWC, Affinity, Enlarge, MinMax, State

WIDTHS: list[int] = []  # of the inputs of any `SizeSensitive`; an attribute would be put back with the model


class SizeSensitive(nn.Module):
    """Logits are green, red and blue; class 1 gains as the input is wider, so the likeliest depends on the size."""

    def __init__(self, classes=3):
        super().__init__()
        self.early = nn.AvgPool2d(8)
        self.late = nn.Conv2d(3, 4, 2, stride=2, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, classes)
        with torch.no_grad():
            self.late.weight.zero_()
            self.late.weight[:3] = torch.eye(3)[:, :, None, None] / 4
            self.fc.weight.zero_()
            self.fc.weight[0, 1] = self.fc.weight[1, 0] = self.fc.weight[2, 2] = 1
            self.fc.weight[1, 3] = 1
            self.fc.bias.zero_()
        self.eval()

    def forward(self, x):
        WIDTHS.append(x.shape[-1])
        features = self.late(self.early(x))
        extra = torch.zeros_like(features)
        extra[:, 3] = (x.shape[-1] - 64) / 64
        return self.fc(self.pool(features + extra).flatten(1))


class Fixed(nn.Module):
    """Takes 64 x 64 and nothing else: positions are added."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.position = nn.Parameter(torch.randn(4, 8, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)
        self.eval()

    def forward(self, x):
        return self.fc(self.pool(self.conv(x) + self.position).flatten(1))


def photo(height=90, width=130, seed=0):
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def by_hand(model, x, label, size, pipeline=()):
    """The normalised map of a class over the input's pixels, from a forward on `x`."""
    with torch.no_grad():
        maps = camtools.wrap(model).activations(x).maps(label)
    return MinMax()(State(maps=interpolate(maps, size=size, mode="bilinear", align_corners=False))).maps[:, 0]


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((224, 224), 1.43, (320, 320)),
        ((224, 224), 2, (448, 448)),
        ((224, 224), 1, (224, 224)),
        ((299, 300), 1, (299, 300)),
        ((299, 299), 1.43, (416, 416)),
        ((224, 224), 0.45, (96, 96)),
        ((160, 224), 1.43, (224, 320)),
        ((64, 64), 0.01, (32, 32)),
    ],
)
def test_sides_are_multiples_of_32(size, scale, expected):
    assert enlarged_size(size, scale) == expected


# --- ready tensors and transforms that camtools can't scale ---------------------------------------------------------


@pytest.mark.parametrize("pipeline", [[Enlarge(2)], [Enlarge(1.43)]])
def test_ready_tensors_are_interpolated(pipeline, make_tiny):
    model, x = make_tiny(), torch.randn(3, 3, 64, 64)
    side = {2: 128, 1.43: 96}[pipeline[0].scale]
    larger = interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    explained = camtools.explain(model, x, target=1, pipeline=pipeline)
    expected = by_hand(model, larger, 1, (64, 64))
    for i, one in enumerate(explained):
        torch.testing.assert_close(one.map, expected[i])
        assert one.raw_map.shape == (side // 4, side // 4)


def test_a_smaller_input_is_interpolated_with_antialiasing(make_tiny):
    model, x = make_tiny(), torch.randn(1, 3, 128, 64)
    image = read_image(x[0])
    for scale, size in ((0.5, (64, 32)), (0.25, (32, 32))):
        found = enlarged([image], x, Preprocess.imagenet(64), scale)
        expected = interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        assert found.equal(expected)
    assert camtools.explain(model, x, pipeline=[Enlarge(0.5)])[0].map.shape == (128, 64)


def test_half_precision_stays():
    x = torch.randn(2, 3, 32, 32).bfloat16()
    found = enlarged([read_image(one) for one in x.float()], x, Preprocess.imagenet(32), 2)
    assert found.dtype == torch.bfloat16
    expected = interpolate(x.float(), size=(64, 64), mode="bilinear", align_corners=False)
    assert found.equal(expected.bfloat16())


def test_a_transform_of_your_own_is_interpolated(make_tiny):
    def transform(image):
        return torch.from_numpy(np.array(image.resize((64, 64)))).permute(2, 0, 1) / 255

    model, input_image = make_tiny(), photo()
    x = transform(Image.fromarray(input_image))[None]
    larger = interpolate(x, size=(128, 128), mode="bilinear", align_corners=False)
    explained = camtools.explain(model, input_image, target=2, pipeline=[Enlarge(2)], transform=transform)
    with torch.no_grad():
        raw = camtools.wrap(model).activations(larger).maps(2)
    torch.testing.assert_close(explained.raw_map, raw[0, 0])


def test_preprocessing_that_does_not_resize_is_interpolated():
    """It cuts out the image's own pixels; a larger cut would show more of the image."""
    image = read_image(photo(200, 200))
    cut = Preprocess((64, 64), None)
    x = cut(image)[0][None]
    expected = interpolate(x, size=(128, 128), mode="bilinear", align_corners=False)
    assert enlarged([image], x, cut, 2).equal(expected)
    whole = Preprocess(None, None)
    x = whole(image)[0][None]
    expected = interpolate(x, size=(384, 384), mode="bilinear", align_corners=False)
    assert enlarged([image], x, whole, 2).equal(expected)


# --- images -------------------------------------------------------------------------------------------------------


def test_class_and_score_are_the_own_sizes_and_the_map_the_larger_ones():
    model, transform = SizeSensitive(), Preprocess.imagenet(64, mean=(0, 0, 0), std=(1, 1, 1))
    image = photo()
    image[..., 0], image[..., 1] = 50, image[..., 1] // 2 + 128
    plain = camtools.explain(model, image, transform=transform)
    WIDTHS.clear()
    larger = camtools.explain(model, image, transform=transform, pipeline=[Enlarge(2)])
    assert set(WIDTHS) == {64, 128, 224} and WIDTHS.count(64) == 1 and WIDTHS[-1] == 128  # 224 to find the features
    assert plain.label == larger.label == 0
    assert larger.score == plain.score and larger.logits.equal(plain.logits)
    x = Preprocess((128, 128), 2 * transform.resize, mean=(0,) * 3, std=(1,) * 3)(read_image(image))[0][None]
    with torch.no_grad():
        found = camtools.wrap(SizeSensitive()).activations(x)
    assert found.logits.argmax() == 1, "the larger forward would have chosen another class"
    torch.testing.assert_close(larger.raw_map, found.maps(0)[0, 0])
    geometry = transform(read_image(image))[1]
    torch.testing.assert_close(larger.map, MinMax()(State(maps=geometry.resize(found.maps(0)))).maps[0, 0])


def test_timm_at_224_makes_its_map_at_320():
    model = timm.create_model("test_resnet").eval()
    transform, image = Preprocess.imagenet(224), photo(300, 280)
    found = camtools.explain(model, image, target=7, pipeline=[Enlarge(), NWC()], transform=transform)
    x = Preprocess((320, 320), 366)(read_image(image))[0][None]  # 256 * 320 / 224 = 365.7
    with torch.no_grad():
        features = camtools.wrap(model).features(x)
        raw = torch.einsum("c,bchw->bhw", camtools.wrap(model).class_weights[7].clamp_min(0), features)
    assert found.raw_map.shape == (10, 10)
    torch.testing.assert_close(found.raw_map, raw[0])
    assert found.score == camtools.explain(model, image, target=7, transform=transform).score


def test_ready_tensors_beside_images_change_nothing_for_them(make_tiny):
    model, transform = make_tiny(), Preprocess.imagenet(64)
    settings = {"target": 0, "pipeline": [Enlarge(2)], "transform": transform}
    ready = torch.randn(3, 64, 64)
    both = camtools.explain(model, [photo(), ready], **settings)
    torch.testing.assert_close(both[0].map, camtools.explain(model, photo(), **settings).map)
    torch.testing.assert_close(both[1].map, camtools.explain(model, ready, **settings).map)


def test_images_of_their_own_sizes(make_tiny):
    """No fixed input: 60 x 90 times 1.43 is 86 x 129, so 96 x 128, over the whole image."""
    model, transform = make_tiny(), Preprocess(None, 60)
    image = photo(60, 90)
    found = camtools.explain(model, image, target=0, pipeline=[Enlarge()], transform=transform)
    assert found.raw_map.shape == (24, 32)
    x = enlarged([read_image(image)], transform(read_image(image))[0][None], transform, 1.43)
    assert x.shape == (1, 3, 96, 128)
    torch.testing.assert_close(found.map[None], by_hand(model, x, 0, (60, 90)))


def test_a_scale_of_one_is_the_plain_map_from_one_forward():
    model = SizeSensitive()
    settings = {"target": 0, "transform": Preprocess.imagenet(64)}
    WIDTHS.clear()
    plain = camtools.explain(model, photo(), pipeline="cam", **settings)
    own = len(WIDTHS)
    WIDTHS.clear()
    one = camtools.explain(model, photo(), pipeline=[Enlarge(1)], **settings)
    looked_at = {224}  # where the features are is looked for at the model's own size
    assert one.map.equal(plain.map) and set(WIDTHS) == {64} | looked_at and len(WIDTHS) == own


def test_stages_are_those_of_the_larger_forward():
    model, transform = SizeSensitive(), Preprocess.imagenet(64)
    found = camtools.explain(model, photo(), target=0, pipeline=[Enlarge(2), Affinity(1)], transform=transform)
    x = enlarged([read_image(photo())], torch.zeros(1, 3, 64, 64), transform, 2)
    with torch.no_grad():
        activations = camtools.wrap(model).activations(x, pyramid=1)
    assert activations.pyramid[0].shape == (1, 3, 16, 16)
    spread = Affinity(1)(State(maps=activations.maps(0), pyramid=activations.pyramid)).maps
    geometry = transform(read_image(photo()))[1]
    torch.testing.assert_close(found.map, MinMax()(State(maps=geometry.resize(spread))).maps[0, 0])


def test_the_trace_is_the_larger_forwards(make_tiny):
    found = camtools.explain(
        make_tiny(), photo(), pipeline=[Enlarge(2), NWC()], transform=Preprocess.imagenet(64), trace=True
    )
    assert [step.step for step in found.trace][:2] == ["weights as trained", "NWC()"]
    assert found.trace[0].map.shape == (32, 32)


def test_the_model_is_left_alone():
    layers = [nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    camtools.explain(model, photo(), pipeline=[Enlarge(2)], transform=Preprocess.imagenet(64))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the same part of the image -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        Preprocess.imagenet(64),
        Preprocess((64, 64), 64),
        Preprocess((64, 64), 50),  # pads
        Preprocess((64, 64), (64, 64), crop_mode="squash"),
        Preprocess((64, 64), (72, 72), crop_mode="squash"),
        Preprocess((64, 64), (64, 64), crop_mode="border"),
        Preprocess((64, 64), (72, 72), crop_mode="center"),
        Preprocess((64, 96), 110),
        Preprocess((64, 112), (70, 120), crop_mode="center"),
        Preprocess((64, 112), (64, 112), crop_mode="border"),
        Preprocess((64, 112), (64, 112), crop_mode="squash"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("scale", [1.43, 2])
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (400, 400)])
def test_the_larger_input_shows_the_same_place(transform, scale, size):
    """A white patch lies at the same share of both inputs, within a pixel of the own one."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 - 40 : height // 2 + 70, width // 2 - 60 : width // 2 + 20] = 255
    image = read_image(pixels)
    x = transform(image)[0][None]
    larger = enlarged([image], x, transform, scale)
    assert larger.shape[2:] == enlarged_size(x.shape[2:], scale)
    for axis in (2, 3):
        edges = [patch(one, axis) * x.shape[axis] / one.shape[axis] for one in (x, larger)]
        assert (edges[0] - edges[1]).abs().max() <= 1


def patch(x, axis):
    """First and last edge of what is bright along an axis, in pixels, to parts of them."""
    profile = x[0, 0].amax(3 - axis)
    low = x.new_tensor(-0.485 / 0.229)
    profile = ((profile - low) / (profile.max() - low)).clamp(0, 1)
    bright = (profile > 0.5).nonzero().flatten()
    first, last = int(bright[0]), int(bright[-1])
    before = profile[max(first - 1, 0)] if first else torch.tensor(0.0)
    after = profile[last + 1] if last + 1 < len(profile) else torch.tensor(0.0)
    return torch.stack([first + 1 - profile[first] - before, last + profile[last] + after])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_boxes_lie_where_they_are_without(mode):
    """Maps of a bright patch: the boxes of both inputs agree up to a cell of the coarser grid."""
    resize = 72 if mode == "center" else (64, 64)
    transform = Preprocess((64, 64), resize, mean=(0,) * 3, std=(1,) * 3, crop_mode=mode)
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[60:140, 100:220, 1] = 255
    settings = {"target": 0, "transform": transform}
    plain = camtools.explain(SizeSensitive(), pixels, **settings, pipeline=[Enlarge(1)])
    larger = camtools.explain(SizeSensitive(), pixels, **settings, pipeline=[Enlarge(4)])
    cell = 16 * 300 / 64
    for one, other in zip(plain.box, larger.box, strict=True):
        assert abs(one - other) < cell
    for one, true in zip(larger.box, (100, 60, 220, 140), strict=True):
        assert abs(one - true) < cell / 4
    assert larger.map.shape == plain.map.shape == (200, 300)


# --- models of one size ---------------------------------------------------------------------------------------------


def no_size(model, height, width):
    return (
        f"{model} can't be run on {height} x {width} pixels, so the step Enlarge does nothing: maps are made from the "
        "model's own input size. Leave Enlarge out to silence this."
    )


@pytest.mark.parametrize(
    ("model", "own", "name"),
    [(Fixed(), 64, "Fixed"), (timm.create_model("test_vit", dynamic_img_size=False).eval(), 160, "VisionTransformer")],
    ids=["own", "timm"],
)
def test_a_fixed_size_warns_once_and_gives_the_plain_map(model, own, name):
    settings = {"transform": Preprocess.imagenet(own)}
    explainer = camtools.Explainer(model, [Enlarge(2)], batch_size=1, **settings)
    with pytest.warns(UserWarning) as caught:
        found = explainer([photo(), photo(seed=1)])
    assert [str(one.message) for one in caught] == [no_size(name, 2 * own, 2 * own)]
    for one, image in zip(found, [photo(), photo(seed=1)], strict=True):
        plain = camtools.explain(model, image, pipeline="cam", **settings)
        assert one.map.equal(plain.map) and one.label == plain.label
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(photo(seed=2))


def test_a_vision_transformer_that_takes_other_sizes_is_enlarged():
    model = timm.create_model("test_vit", dynamic_img_size=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = camtools.explain(model, photo(), pipeline=[Enlarge(2)], transform=Preprocess.imagenet(160))
    assert found.raw_map.shape == (20, 20)


def test_sizes_are_tried_once_each():
    engine = Engine(SizeSensitive(), [Pipeline([Enlarge(2)])])
    own = torch.zeros(2, 3, 32, 32)

    def runs(shape):
        WIDTHS.clear()
        return 2.0 in engine.forward(own, {2.0: torch.ones(2, *shape)}).larger

    engine.forward(own)
    assert runs((3, 96, 64)) and WIDTHS.count(64) == 2, "once to try, once for the maps"
    assert runs((3, 96, 64)) and WIDTHS.count(64) == 1, "known by now"
    assert runs((3, 64, 96)) and WIDTHS.count(96) == 2
    with pytest.warns(UserWarning) as caught:
        assert not runs((4, 64, 64)) and not runs((4, 64, 64))
    assert [str(warning.message) for warning in caught] == [no_size("SizeSensitive", 64, 64)]


def test_memory_that_runs_out_is_not_a_size_that_is_not_taken():
    class Hungry(Fixed):
        def forward(self, x):
            if x.shape[-1] > 64:
                raise torch.OutOfMemoryError("no room")
            return super().forward(x)

    with pytest.raises(ModelError, match="ran out of memory with 1 images per forward: give a smaller batch_size"):
        camtools.explain(Hungry(), photo(), pipeline=[Enlarge(2)], transform=Preprocess.imagenet(64))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)])
def test_trying_a_size_does_not_change_what_is_found(pool):
    """The first forward of all is that of a size's trial; the features found in it are the right ones."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 3)).eval()
    settings = {"transform": Preprocess.imagenet(64), "target": 0}
    plain = camtools.explain(model, photo(), **settings)
    larger = camtools.explain(model, photo(), pipeline=[Enlarge(2)], **settings)
    assert (larger.layer, larger.exact) == (plain.layer, plain.exact)


# --- segment --------------------------------------------------------------------------------------------------------


def test_segment_from_a_larger_input():
    """Edges of a green square are sharper where the map has four times the cells."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:40, 24:56, 1] = 255
    truth = torch.from_numpy(pixels[..., 1] > 0)
    transform = Preprocess((64, 64), (64, 64), mean=(0,) * 3, std=(1,) * 3)
    model = SizeSensitive()
    settings = {"transform": transform, "classes": 0, "background": 0.5}
    plain = camtools.segment(model, pixels, pipeline=[Enlarge(1)], **settings)
    larger = camtools.segment(model, pixels, pipeline=[Enlarge(8)], **settings)
    assert larger.classes == plain.classes == (0,) and larger.scores == plain.scores
    x = enlarged([read_image(pixels)], torch.zeros(1, 3, 64, 64), transform, 8)
    torch.testing.assert_close(larger.maps, by_hand(model, x, 0, (64, 64)))
    missed = [int(((one.mask == 1) != truth).sum()) for one in (plain, larger)]
    assert missed[1] < missed[0] / 4 and missed[1] <= 64
