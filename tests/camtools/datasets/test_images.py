from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from camtools import InputError
from camtools.datasets.images import fit_boxes, mask_boxes, read_annotated, read_levels, resize_masks


@pytest.fixture
def turned(tmp_path):
    """An image stored 6 x 4 with its left half red, that EXIF says to turn by 90 degrees, so 4 x 6 upright."""
    image = Image.new("RGB", (6, 4), "blue")
    image.paste("red", (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("size", "upright", "expected"),
    [
        (None, False, (6, 4)),
        (None, True, (4, 6)),
        ((6, 4), True, (6, 4)),
        ((4, 6), False, (4, 6)),
        ((9, 9), False, (6, 4)),
        ((9, 9), True, (4, 6)),
    ],
)
def test_the_annotations_size_decides_between_stored_and_upright(turned, size, upright, expected):
    assert read_annotated(turned, size, upright).size == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    Image.fromarray(stored).save(path, exif=exif)
    assert np.array_equal(np.asarray(read_annotated(path)), stored)


def test_a_broken_image_is_named(tmp_path, draw):
    whole = draw(tmp_path / "whole.jpg", (40, 30)).read_bytes()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"broken\.jpg.*truncated"):
        read_annotated(broken)
    with pytest.raises(InputError, match=r"missing\.jpg.*does not exist"):
        read_annotated(tmp_path / "missing.jpg")


def test_boxes_are_scaled_with_the_image(tmp_path):
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    there = Image.new("RGB", (50, 40))
    assert fit_boxes(boxes, None, there, tmp_path) is boxes
    assert fit_boxes(boxes, (50, 40), there, tmp_path) is boxes
    assert fit_boxes(boxes, (100, 80), there, tmp_path).tolist() == [[5, 10, 15, 30]]
    assert fit_boxes(boxes, (100, 160), there, tmp_path, squashed=True).tolist() == [[5, 5, 15, 15]]


@pytest.mark.parametrize(("stated", "there"), [((500, 375), (341, 256)), ((500, 333), (385, 256)), ((3, 2), (2, 1))])
def test_rounding_to_whole_pixels_keeps_the_aspect_ratio(tmp_path, stated, there):
    boxes = torch.tensor([[0.0, 0.0, *map(float, stated)]])
    assert fit_boxes(boxes, stated, Image.new("RGB", there), tmp_path)[0].tolist() == pytest.approx([0, 0, *there])


def test_another_aspect_ratio_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg is 227 x 227 pixels, but its annotation is for 500 x 375"):
        fit_boxes(torch.zeros(1, 4), (500, 375), Image.new("RGB", (227, 227)), tmp_path / "a.jpg")


def test_levels_of_palette_and_one_bit_masks(tmp_path, draw):
    values = np.array([[0, 1, 255], [2, 1, 0]])
    palette = draw(tmp_path / "p.png", values, "P")
    assert np.array_equal(read_levels(palette, palette=True), values)
    assert read_levels(palette, palette=False)[0, 0] == 255  # the palette's grey level of value 0
    one_bit = draw(tmp_path / "1.png", values * 255, "1")
    assert set(np.unique(read_levels(one_bit, palette=False))) == {0, 255}
    assert np.array_equal(read_levels(draw(tmp_path / "l.png", values), palette=True), values)


def test_wrong_masks_are_named(tmp_path, draw):
    with pytest.raises(InputError, match=r"none\.png' cannot be read"):
        read_levels(tmp_path / "none.png", palette=True)
    colour = draw(tmp_path / "colour.png", (3, 2))
    with pytest.raises(InputError, match=r"colour\.png is of mode 'RGB': expected a mask of one 8-bit channel"):
        read_levels(colour, palette=True)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.png' cannot be read"):
        read_levels(tmp_path / "text.png", palette=False)
    with pytest.raises(InputError, match=r"is 3 x 2 pixels, but its image is 4 x 2"):
        read_levels(colour, palette=False, image=Image.new("RGB", (4, 2)))


def test_boxes_around_masks():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2:6] = True
    masks[2, 4, 6] = masks[2, 0, 3] = True
    boxes = mask_boxes(masks)
    assert boxes[[0, 2]].tolist() == [[2, 1, 6, 4], [3, 0, 7, 5]]
    assert boxes[1].isnan().all()
    assert boxes.dtype == torch.float32
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_masks_are_resized_by_the_nearest_pixel():
    mask = torch.tensor([[[True, False], [False, True]]])
    assert torch.equal(
        resize_masks(mask, Image.new("RGB", (4, 2)))[0], torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    )
    assert resize_masks(mask[:0], Image.new("RGB", (4, 3))).shape == (0, 3, 4)
    assert resize_masks(mask, Image.new("RGB", (2, 2))) is mask
