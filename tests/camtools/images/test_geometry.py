"""Geometry against torch's own interpolation, grid_sample, torchvision's crops and hand-computed cases."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.autograd import gradcheck
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import center_crop

from camtools.errors import InputError
from camtools.images.geometry import Geometry, centre_offset
from camtools.images.measured import measure_geometry
from camtools.images.preprocess import Preprocess
from camtools.images.read import read_image

DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
SIDES = list(itertools.product([1, 2, 7, 10, 11, 12, 13, 256, 341], [1, 4, 7, 224, 225]))
TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.4], [0.229, 0.2, 0.3])]


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (37, 91), (7, 5), (3, 2), (1, 1)])
def test_identity_equals_interpolate(maps, size, mode, dtype, tolerance, device):
    maps = maps.to(device, dtype)
    result = Geometry.identity(size).resize(maps, mode)
    expected = F.interpolate(maps.double(), size, mode=mode, align_corners=False)
    assert result.shape == (2, 3, *size)
    assert result.dtype == dtype
    assert result.device == maps.device
    assert (result.double() - expected).abs().max() < tolerance * 4


def test_squash_equals_interpolate_too(maps):
    geometry = Geometry.from_resize_crop((60, 90), (224, 224), (224, 224))
    assert torch.allclose(geometry.resize(maps), F.interpolate(maps, (60, 90), mode="bilinear"), atol=1e-5)


def test_values_by_hand():
    """Two cells over 4 input pixels, of which the image's middle 4 of 8 pixels were the crop."""
    geometry = Geometry.from_resize_crop((1, 8), (1, 8), (1, 4))
    result = geometry.resize(torch.tensor([[[[2.0, 6.0]]]]))
    assert result.flatten().tolist() == [2, 2, 2, 3, 5, 6, 2, 2]
    assert geometry.resize(torch.tensor([[[[6.0, 2.0]]]])).flatten().tolist() == [2, 2, 6, 5, 3, 2, 2, 2]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(100, 60), (333, 500), (64, 64), (30, 200)])
def test_crop_equals_grid_sample(maps, size, mode):
    short = min(size)
    resized = (size[0] * 96 // short, size[1] * 96 // short)
    geometry = Geometry.from_resize_crop(size, resized, (84, 80))
    (sy, sx), (oy, ox) = geometry.scale, geometry.offset
    y = ((torch.arange(size[0], dtype=torch.float64) + 0.5) * sy + oy) / 84 * 2 - 1
    x = ((torch.arange(size[1], dtype=torch.float64) + 0.5) * sx + ox) / 80 * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(2, -1, -1, -1)
    expected = F.grid_sample(maps.double(), grid, mode=mode, padding_mode="border", align_corners=False)
    seen = (y.abs() <= 1)[:, None] & (x.abs() <= 1)
    result = geometry.resize(maps, mode).double()
    assert (~seen).any()
    assert not geometry.covers_all
    assert (result - expected)[..., seen].abs().max() < 1e-5
    least = maps.amin((-2, -1), keepdim=True).double().expand_as(result)
    assert (result - least)[..., ~seen].abs().max() < 1e-6


def test_padding_covers_all_and_samples_only_the_middle():
    geometry = Geometry.from_resize_crop((4, 2), (4, 2), (4, 4))
    assert geometry.offset == (0, 1)
    assert geometry.covers_all
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert torch.equal(geometry.resize(ramp), torch.tensor([1.0, 2.0]).expand(1, 1, 4, 2))


def test_gradients_and_autocast(maps):
    geometry = Geometry.from_resize_crop((9, 12), (8, 11), (6, 6))
    small = maps[:1, :1, :3, :2].double().requires_grad_()
    for mode in ("bilinear", "bicubic"):
        assert gradcheck(lambda m, mode=mode: geometry.resize(m, mode), (small,), eps=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(geometry.resize(maps), geometry.resize(maps.clone()))
        inside = geometry.resize(maps)
    assert torch.equal(inside, geometry.resize(maps))


def test_maps_are_left_as_they_were(maps):
    before = maps.clone()
    Geometry.from_resize_crop((30, 40), (20, 26), (16, 16)).resize(maps)
    assert torch.equal(maps, before)


@pytest.mark.parametrize(("side", "crop"), SIDES)
def test_centre_offset_is_torchvisions(side, crop):
    row = center_crop(torch.arange(1, side + 1)[None, None], [1, crop]).flatten()
    first = int(torch.nonzero(row)[0])
    assert centre_offset(side, crop) == first - int(row[first] - 1)


def test_boxes_by_hand_and_back():
    geometry = Geometry.from_resize_crop((100, 200), (50, 100), (50, 50))
    assert geometry.scale == (0.5, 0.5)
    assert geometry.offset == (0, -25)
    assert geometry.visible_box == (50, 0, 150, 100)
    boxes = torch.tensor([[10, 0, 30, 50], [0, 20, 50, 40]])
    original = geometry.boxes_to_original(boxes)
    assert original.tolist() == [[70, 0, 110, 100], [50, 40, 150, 80]]
    assert torch.equal(geometry.boxes_to_input(original), boxes.float())
    assert geometry.boxes_to_input(torch.tensor([0, 10, 300, 20])).tolist() == [0, 5, 50, 10]
    assert geometry.boxes_to_input(torch.tensor([0, 10, 300, 20]), clip=False).tolist() == [-25, 5, 125, 10]
    padded = Geometry.from_resize_crop((4, 2), (4, 2), (4, 4))
    assert padded.boxes_to_original(torch.tensor([0.0, 0, 4, 4])).tolist() == [0, 0, 2, 4]
    assert padded.boxes_to_original(torch.tensor([0.0, 0, 4, 4]), clip=False).tolist() == [-1, 0, 3, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Geometry.identity((0, 4)), "side below 1"),
        (lambda: Geometry((4, 4), (4, 4), (0.0, 1.0), (0.0, 0.0)), "cannot be undone"),
        (lambda: Geometry((4, 4), (4, 4), (1.0, 1.0), (float("nan"), 0.0)), "cannot be undone"),
        (lambda: Geometry.identity((4, 4)).resize(torch.zeros(7, 7)), r"shape \(7, 7\).*maps\[None, None\]"),
        (lambda: Geometry.identity((4, 4)).resize(torch.zeros(1, 1, 0, 7)), r"shape \(1, 1, 0, 7\)"),
        (lambda: Geometry.identity((4, 4)).resize(torch.zeros(1, 1, 7, 7).long()), "int64"),
        (lambda: Geometry.identity((4, 4)).resize(torch.zeros(1, 1, 7, 7), "area"), "'area'.*'bilinear' or 'bicubic'"),
        (lambda: Geometry.identity((4, 4)).boxes_to_input(torch.zeros(3)), r"shape \(3,\).*\(..., 4\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()


MODES = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST)


def _known(size, mode):
    """Transforms with their true geometry."""
    height, width = size
    short, long = min(size), max(size)
    resized = (256, int(256 * width / height)) if height <= width else (int(256 * height / width), 256)
    yield "crop", [v2.Resize(256, mode), v2.CenterCrop(224)], Geometry.from_resize_crop(size, resized, (224, 224))
    yield "squash", [v2.Resize((224, 160), mode)], Geometry.from_resize_crop(size, (224, 160), (224, 160))
    yield "none", [], Geometry.identity(size)
    top, left = (long - height) // 2, (long - width) // 2
    pad, q = [left, top, long - width - left, long - height - top], 224 / long
    truth = Geometry(size, (224, 224), (q, q), (top * q, left * q))
    for fill in ("constant", "edge"):
        yield f"pad {fill}", [v2.Pad(pad, padding_mode=fill), v2.Resize((224, 224), mode)], truth
    crop = int(short * 0.9)
    top, left, q = centre_offset(height, crop), centre_offset(width, crop), 224 / crop
    truth = Geometry(size, (224, 224), (q, q), (top * q, left * q))
    yield "crop first", [v2.CenterCrop(crop), v2.Resize((224, 224), mode)], truth


@pytest.mark.parametrize(
    ("size", "mode"),
    [(size, mode) for size in ((40, 60), (375, 500), (500, 333), (100, 640)) for mode in MODES]
    + [((900, 1200), InterpolationMode.BICUBIC)],
)
def test_measured_within_half_a_pixel(size, mode):
    for name, steps, truth in _known(size, mode):
        measured = measure_geometry(v2.Compose([*steps, *TO_TENSOR]), size)
        box = torch.tensor(truth.visible_box, dtype=torch.float64)
        there = measured.boxes_to_original(truth.boxes_to_input(box, clip=False), clip=False)
        assert (there - box).abs().max() < 0.5, name
        assert measured.input_size == truth.input_size


@pytest.mark.parametrize(
    "channels",
    [v2.Grayscale(), v2.RandomInvert(p=1), v2.GaussianBlur(5, sigma=2.0), v2.Lambda(lambda i: i.convert("CMYK"))],
)
def test_measured_whatever_the_channels(channels):
    steps = [channels, v2.Resize(64), v2.CenterCrop(48), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    measured = measure_geometry(v2.Compose(steps), (90, 120))
    truth = Geometry.from_resize_crop((90, 120), (64, 85), (48, 48))
    assert measured.scale == pytest.approx(truth.scale)
    assert measured.offset == pytest.approx(truth.offset)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (v2.RandomHorizontalFlip(p=1), "x runs backwards: it flips"),
        (v2.RandomVerticalFlip(p=1), "y runs backwards: it flips"),
        (v2.Lambda(lambda i: i.transpose(Image.Transpose.ROTATE_90)), "turns or transposes"),
        (v2.Lambda(lambda i: i.transpose(Image.Transpose.ROTATE_180)), "runs backwards"),
        (v2.Lambda(lambda i: i.transpose(Image.Transpose.TRANSPOSE)), "turns or transposes"),
        (v2.Compose([v2.RandomRotation((8, 8)), v2.CenterCrop(60)]), "rotates or shears"),
        (v2.RandomRotation((30, 30)), "no upright rectangle"),
        (v2.Compose([v2.RandomAffine((0, 0), shear=(15, 15, 0, 0)), v2.CenterCrop(60)]), "rotates or shears"),
        (v2.Lambda(lambda i: Image.new("RGB", i.size, "grey")), "the same of a black and of a white"),
        (v2.Lambda(lambda i: i.point(lambda v: int((v / 255) ** 3 * 255))), "does not follow a straight line"),
    ],
)
def test_unmeasurable(step, message):
    transform = v2.Compose([step, v2.Resize((64, 64)), *TO_TENSOR])
    with pytest.raises(InputError, match=message) as caught:
        measure_geometry(transform, (90, 120))
    assert "90 x 120" in str(caught.value)
    assert "pass such a transform, a Preprocess, or ready tensors" in str(caught.value)


def test_too_small_to_measure():
    with pytest.raises(InputError, match="7 x 20: it is too small, expected at least 8"):
        measure_geometry(v2.Compose(TO_TENSOR), (7, 20))


@pytest.mark.parametrize("size", [(30, 50), (224, 224), (375, 500), (61, 7)])
@pytest.mark.parametrize("transform", [Preprocess(), Preprocess((96, 64), (100, 120)), Preprocess((50, 50), None)])
def test_what_is_seen_is_where_the_map_is_not_the_minimum(size, transform):
    geometry = transform(read_image(np.zeros((*size, 3), np.uint8)))[1]
    x0, y0, x1, y1 = geometry.seen
    maps = 1 + torch.rand(1, 1, 5, 5)
    maps[0, 0, 2, 2] = 0  # the least, which unseen pixels get; seen ones do not reach it
    above = geometry.resize(maps)[0, 0] > 0
    seen = torch.zeros(size, dtype=torch.bool)
    seen[y0:y1, x0:x1] = True
    assert not above[~seen].any() and above[seen].float().mean() > 0.9
    assert geometry.covers_all == ((x0, y0, x1, y1) == (0, 0, size[1], size[0]))


def test_the_same_input_from_a_smaller_rendering():
    geometry = Geometry.from_resize_crop((300, 400), (256, 341), (224, 224))
    half = geometry.at((150, 200))
    assert half.size == (150, 200) and half.scale == (2 * geometry.scale[0], 2 * geometry.scale[1])
    box = torch.tensor([[10.0, 20.0, 100.0, 90.0]])
    torch.testing.assert_close(half.boxes_to_input(box), geometry.boxes_to_input(2 * box))
