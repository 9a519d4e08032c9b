"""The same pixels as torchvision and timm, and the right geometry for transforms that do not tell theirs."""

import random

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms import v2

from camtools.errors import InputError
from camtools.images.geometry import Geometry
from camtools.images.measured import MeasuredTransform
from camtools.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, as_transform, display_image
from camtools.images.read import InputImage, read_image

TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


@pytest.fixture(scope="module")
def photos():
    """Real photographs: square, wide, tall, very wide, smaller than 224 on one side."""
    arrays = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()[:, :180]]
    return [read_image(a) for a in (*arrays, skimage.data.coffee()[:90], skimage.data.coffee()[:231, :230])]


def config(**changes):
    base = {"input_size": (3, 224, 224), "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return base | {"crop_pct": 0.875, "crop_mode": "center"} | changes


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0, 1.15])
@pytest.mark.parametrize("input_size", [(3, 224, 224), (3, 160, 224)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_same_pixels_as_timm(photos, crop_mode, crop_pct, input_size, interpolation):
    data_config = config(crop_mode=crop_mode, crop_pct=crop_pct, input_size=input_size, interpolation=interpolation)
    ours, theirs = Preprocess.from_timm(data_config), create_transform(**data_config, is_training=False)
    for photo in photos:
        tensor, geometry = ours(photo)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs(photo.image))
        assert geometry.size == photo.size
        assert geometry.input_size == input_size[1:]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_geometry_is_what_is_measured_of_timm(photos, crop_mode, crop_pct):
    data_config = config(crop_mode=crop_mode, crop_pct=crop_pct)
    measured = as_transform(create_transform(**data_config, is_training=False))
    for photo in photos:
        geometry = Preprocess.from_timm(data_config)(photo)[1]
        seen = torch.tensor(geometry.visible_box, dtype=torch.float64)
        there = measured(photo)[1].boxes_to_original(geometry.boxes_to_input(seen, clip=False), clip=False)
        assert (there - seen).abs().max() < 0.5


def test_timm_one_channel(photos):
    ours = Preprocess.from_timm(config(input_size=(1, 64, 64), mean=(0.4, 0.5, 0.6), std=(0.2,) * 3))
    assert ours.channels == 1
    assert ours.mean == pytest.approx((0.5,))
    theirs = create_transform(**config(input_size=(1, 64, 64), mean=(0.5,), std=(0.2,)), is_training=False)
    for photo in photos:
        assert torch.allclose(ours(photo)[0], theirs(photo.image.convert("L")), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["resnet50", "efficientnet_b0", "vit_b_16", "swin_t", "inception_v3", "mobilenet_v3_large"]
)
def test_same_pixels_as_torchvision(photos, name):
    for weights in torchvision.models.get_model_weights(name):
        preset = weights.transforms()
        ours = as_transform(preset)
        assert ours == Preprocess.from_torchvision(preset)
        for photo in photos[:3]:
            assert torch.equal(ours(photo)[0], preset(photo.image))


def test_imagenet(photos):
    steps = [v2.Resize(256), v2.CenterCrop(224)]
    squash = [v2.Resize((160, 224))]
    for photo in photos:
        tensor, geometry = Preprocess.imagenet()(photo)
        assert (tensor - v2.Compose([*steps, *TO_TENSOR])(photo.image)).abs().max() < 1e-6
        assert not geometry.covers_all
        tensor, geometry = Preprocess.imagenet((160, 224), squash=True)(photo)
        assert (tensor - v2.Compose([*squash, *TO_TENSOR])(photo.image)).abs().max() < 1e-6
        assert geometry.covers_all
    grey = Preprocess.imagenet(32, mean=(0.5,), std=(0.25,))(photos[0])[0]
    assert grey.shape == (1, 32, 32)


def test_by_hand():
    image = read_image(np.array([[[255, 0, 51]] * 4] * 2, np.uint8))
    plain = Preprocess(input_size=None, resize=None, mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 0.1))
    tensor, geometry = plain(image)
    assert tensor.shape == (3, 2, 4)
    assert tensor[:, 1, 2].tolist() == pytest.approx([1, 0, 2])
    assert geometry == Geometry.identity((2, 4))
    tensor, geometry = Preprocess((4, 2), None, mean=(0.0,) * 3, std=(1.0,) * 3)(image)
    assert tensor[0].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert geometry.offset == (1, -1)
    tensor, geometry = Preprocess((4, 4), (4, 4), mean=(0.4,) * 3, crop_mode="border")(image)
    assert tensor[:, 0].abs().max() < 1e-5, "the border is the mean"
    assert geometry.offset == (1, 0)
    assert Preprocess((4, 4), (4, 4)).crop_mode == "squash"


def test_ready_tensors_pass_through():
    ready = read_image(torch.randn(3, 5, 7).double())
    for transform in (Preprocess.imagenet(), as_transform(lambda image: 1 / 0)):
        tensor, geometry = transform(ready)
        assert torch.equal(tensor, ready.tensor.float())
        assert geometry == Geometry.identity((5, 7))
    with pytest.raises(InputError, match=r"shape \(1, 5, 7\), so 1 channels: expected 3"):
        Preprocess.imagenet()(read_image(torch.zeros(1, 5, 7)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_size": (0, 4)}, r"input_size is \(0, 4\): expected \(height, width\)"),
        ({"input_size": 224}, "input_size is 224"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": (1, 2, 3)}, r"resize is \(1, 2, 3\)"),
        ({"interpolation": "area"}, "'area': expected one of 'nearest', "),
        ({"crop_mode": "top"}, "'top': expected one of 'center', 'squash', 'border'"),
        ({"crop_mode": "border"}, r"'border' and resize 256: expected a pair"),
        ({"channels": 4}, "expected 4 values each"),
        ({"channels": 0}, "channels=0: expected a whole number of at least 1"),
        ({"channels": 1}, "expected 1 values each"),
        ({"std": (0.0, 1.0, 1.0)}, "std above 0"),
    ],
)
def test_parameters_out_of_range(kwargs, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**kwargs)


def test_constructors_refuse_what_they_cannot_follow():
    with pytest.raises(InputError, match="sets crop_border_pixels, which Preprocess does not follow"):
        Preprocess.from_timm(config(crop_border_pixels=4))
    with pytest.raises(InputError, match="'best': expected one of"):
        Preprocess.from_timm(config(crop_mode="best"))
    with pytest.raises(InputError, match=r"expected an ImageClassification preset. Pass weights.transforms\(\)"):
        Preprocess.from_torchvision(v2.Compose(TO_TENSOR))
    for wrong in (None, "imagenet", 224, v2.Resize):
        with pytest.raises(InputError, match="expected a Preprocess, or a callable from a PIL image"):
            as_transform(wrong)
    measured = as_transform(v2.Compose(TO_TENSOR))
    assert as_transform(measured) is measured


def test_any_transform_is_measured_once_a_size():
    calls = []
    steps = v1.Compose([v1.Resize(64), v1.CenterCrop(56), v1.ToTensor(), v1.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def transform(image):
        calls.append(image.size)
        return steps(image)[None]

    measured = as_transform(transform)
    assert isinstance(measured, MeasuredTransform)
    input_image = read_image(skimage.data.chelsea())
    tensor, geometry = measured(input_image)
    assert torch.equal(tensor, steps(input_image.image))
    truth = Geometry.from_resize_crop((300, 451), (64, 96), (56, 56))
    assert geometry.scale == pytest.approx(truth.scale)
    assert geometry.offset == truth.offset
    first = len(calls)
    assert first <= 13
    assert measured(input_image)[1] is geometry
    assert len(calls) == first + 1


@pytest.mark.parametrize(
    "step",
    [
        v1.RandomHorizontalFlip(),
        v2.RandomResizedCrop(32),
        v2.ColorJitter(0.5),
        v2.Lambda(lambda image: image.rotate(random.uniform(-9, 9))),
        v2.Lambda(lambda image: image.rotate(np.random.uniform(-9, 9))),
    ],
)
def test_random_transforms_are_refused_and_draw_nothing(step):
    transform = as_transform(v2.Compose([v2.Resize((32, 32)), step, *TO_TENSOR]))
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with pytest.raises(InputError, match=r"is random: it draws random numbers.*deterministic"):
        transform(read_image(skimage.data.chelsea()))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_random_by_its_own_generator():
    generator = np.random.default_rng(0)
    noisy = v2.Compose([*TO_TENSOR, v2.Lambda(lambda tensor: tensor + generator.normal())])
    with pytest.raises(InputError, match="it gives two results for one image"):
        as_transform(noisy)(read_image(skimage.data.chelsea()))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([v2.RandomHorizontalFlip(p=1), *TO_TENSOR]), "random"),
        (v1.Compose([v1.functional.hflip, v1.ToTensor()]), "it flips the image"),
        (v2.Resize(32), r"gives Image: expected a floating tensor \(C, h, w\). End it in ToTensor"),
        (v2.PILToTensor(), r"gives torch.uint8 of shape \(3, 300, 451\)"),
        (v2.Compose([v2.Resize(64), v2.FiveCrop(32), *TO_TENSOR[:2]]), "gives tuple"),
        (lambda image: torch.stack([v1.ToTensor()(image)] * 2), r"torch.float32 of shape \(2, 3, 300, 451\)"),
        (v2.Normalize(IMAGENET_MEAN, IMAGENET_STD), "failed on a PIL image of 451 x 300"),
    ],
)
def test_transforms_that_cannot_be_used(transform, message):
    with pytest.raises(InputError, match=message):
        as_transform(transform)(read_image(skimage.data.chelsea()))


def test_size_that_depends_on_the_content():
    def trim(image):
        red = np.asarray(image)[..., 0]
        return v1.ToTensor()(
            image.crop((0, 0, 20, 20)) if (red == red.flat[0]).mean() == 1 and red[0, 0] == 9 else image
        )

    with pytest.raises(InputError, match=r"gives \(20, 20\) for this image, \(40, 50\) for others of its size"):
        as_transform(trim)(read_image(np.full((40, 50, 3), 9, np.uint8)))


def test_display_image():
    photo = read_image(skimage.data.chelsea())
    assert display_image(photo) is photo.image
    preprocess = Preprocess(None, None)
    ready = read_image(preprocess(photo)[0])
    assert np.array_equal(np.asarray(display_image(ready, preprocess)), np.asarray(photo.image))
    stretched = np.asarray(display_image(ready))
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert np.asarray(display_image(ready, as_transform(v2.Compose(TO_TENSOR)))).max() == 255
    unit = torch.tensor([0.0, 0.2, 1.0]).expand(3, 1, 3)
    assert np.asarray(display_image(read_image(unit)))[0, :, 0].tolist() == [0, 51, 255]
    wild = read_image(torch.tensor([-500.0, 0.0, 500.0]).expand(3, 1, 3))
    assert np.asarray(display_image(wild, preprocess))[0, :, 0].tolist() == [0, 128, 255]
    for channels in (1, 2, 5):
        assert display_image(read_image(torch.randn(channels, 4, 6))).size == (6, 4)
    constant = display_image(read_image(torch.full((3, 2, 2), -3.0)))
    assert (constant.mode, constant.getpixel((0, 0))) == ("RGB", (0, 0, 0))
    with pytest.raises(InputError, match="this image has no pixels"):
        display_image(InputImage(None, None, None, (1, 1)))


def test_real_photographs_in_their_own_aspect(shared):
    """The crop of a real photograph shows, at the places that the geometry names, the photograph's own colours."""
    for file in sorted((shared / "data" / "ilsvrc_woof" / "test").rglob("*.*"))[:4]:
        image = read_image(file)
        tensor, geometry = Preprocess.imagenet()(image)
        back = geometry.resize(tensor[None])[0]
        original = Preprocess(None, None)(image)[0]
        x0, y0, x1, y1 = (round(v) for v in geometry.visible_box)
        inside = (slice(None), slice(y0 + 4, y1 - 4), slice(x0 + 4, x1 - 4))
        seen, truth = back[inside].flatten(), original[inside].flatten()
        assert torch.corrcoef(torch.stack([seen, truth]))[0, 1] > 0.95
        assert isinstance(image.image, Image.Image)


def test_a_timm_data_config_is_a_transform():
    config = {"input_size": (3, 64, 64), "crop_pct": 0.5, "crop_mode": "center", "interpolation": "bicubic"}
    assert as_transform(config) == Preprocess.from_timm(config)
    assert as_transform(config).resize == 128


# --- to another size ------------------------------------------------------------------------------------------------

GREY = {"std": (0.2,), "channels": 1}


@pytest.mark.parametrize(
    ("before", "ratio", "after"),
    [
        (Preprocess((224, 224), 256), (320 / 224, 320 / 224), Preprocess((320, 320), 366)),
        (Preprocess((224, 224), 224), (2, 2), Preprocess((448, 448), 448)),
        (Preprocess((224, 224), (224, 224)), (0.5, 2), Preprocess((112, 448), (112, 448))),
        (
            Preprocess((64, 96), (70, 100), "bicubic", crop_mode="border"),
            (1.5, 1.5),
            Preprocess((96, 144), (105, 150), "bicubic", crop_mode="border"),
        ),
        (Preprocess(None, 60), (1.5, 2), Preprocess(None, 120)),
        (Preprocess(None, (60, 80)), (1.5, 2), Preprocess(None, (90, 160))),
        (Preprocess(None, None), (2, 2), Preprocess(None, None)),
        (Preprocess((4, 4), 5, mean=(0.5,), **GREY), (0.01, 0.01), None),
        (Preprocess((8, 8), 9, mean=(0.5,), **GREY), (4, 4), Preprocess((32, 32), 36, mean=(0.5,), **GREY)),
    ],
)
def test_scaled_by_hand(before, ratio, after):
    if after is None:
        with pytest.raises(InputError, match=r"input_size is \(0, 0\): expected \(height, width\), pixels above 0"):
            before.scaled(ratio)
    else:
        assert before.scaled(ratio) == after


def test_scaled_needs_a_resize():
    transform = Preprocess((32, 32), None)
    with pytest.raises(InputError) as error:
        transform.scaled((2, 2))
    assert str(error.value) == (
        f"{transform!r} can't be scaled: it cuts out the image's own pixels, and would cut out others. Give it a resize"
    )


@pytest.mark.parametrize("ratio", [320 / 224, 2, 0.5])
@pytest.mark.parametrize(
    "transform",
    [
        Preprocess(),
        Preprocess((224, 224), 224),
        Preprocess((224, 224), 194),
        Preprocess((160, 224), 256),
        Preprocess((224, 224), (224, 224)),
        Preprocess((224, 224), (256, 256), crop_mode="squash"),
        Preprocess((224, 224), (256, 256), crop_mode="center"),
        Preprocess((224, 224), (224, 224), crop_mode="border"),
        Preprocess((160, 224), (183, 256), crop_mode="center"),
        Preprocess((160, 224), (160, 224), crop_mode="border"),
        Preprocess(None, 256),
    ],
    ids=repr,
)
def test_scaled_shows_the_same_part(photos, transform, ratio):
    """Up to two pixels of the smaller input: a rounded side and offset of each, by half a pixel at most."""
    for photo in photos:
        one, other = transform(photo)[1], transform.scaled((ratio, ratio))(photo)[1]
        pixel = max(1 / min(g.scale) for g in (one, other))
        seen = torch.tensor([one.visible_box, other.visible_box])
        assert (seen[0] - seen[1]).abs().max() <= 2 * pixel
        assert one.size == other.size


def test_squash_shows_all_at_any_ratio(photos):
    squash = Preprocess.imagenet((160, 224), squash=True).scaled((1.4, 3))
    for photo in photos:
        tensor, geometry = squash(photo)
        assert tensor.shape == (3, 224, 672) and geometry.covers_all
        assert geometry.visible_box == pytest.approx((0, 0, photo.size[1], photo.size[0]))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
@pytest.mark.parametrize("mode", ["center", "border", "squash"])
def test_extreme_aspect_ratios_are_bounded(size, mode):
    image = InputImage(Image.new("RGB", size), None, None, size[::-1])
    resize = 32 if mode == "center" else (32, 32)
    tensor, geometry = Preprocess(input_size=(32, 32), resize=resize, crop_mode=mode)(image)
    assert tensor.shape == (3, 32, 32) and geometry.size == size[::-1]
    assert max(geometry.scale) <= 64 * 32
