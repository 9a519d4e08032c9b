"""Augmentation: seeded by image, and what each kind does to pixels."""

import numpy as np
import torch
from PIL import Image

from camtools.images.preprocess import Preprocess
from camtools.training import TrainConfig
from camtools.training.augment import (
    HideAndSeek,
    cutmix,
    move_boxes,
    move_map,
    plain_transform,
    seeded,
    training_transform,
)

UNIT = Preprocess(input_size=(8, 8), resize=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def ramp(width=8, height=8):
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width) * 10
    pixels[..., 1] = np.arange(height)[:, None] * 10
    return Image.fromarray(pixels)


def test_seeded_numbers_depend_on_the_arguments_and_leave_the_callers_alone():
    before = torch.get_rng_state()
    with seeded(1, 2, 3):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(1, 2, 3):
        assert torch.equal(torch.rand(4), first)
    with seeded(1, 2, 4):
        assert not torch.equal(torch.rand(4), first)


def test_the_plain_transform_squashes_and_normalises():
    unit = Preprocess(input_size=(8, 8), resize=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    x = plain_transform(TrainConfig(), unit)(Image.new("RGB", (30, 10), (255, 0, 51)))
    assert x.shape == (3, 8, 8)
    torch.testing.assert_close(x.mean((1, 2)), torch.tensor([2.0, -1.0, -0.3]))


def test_no_augmentation_gives_the_image_itself():
    x = training_transform(TrainConfig(augment=()), UNIT)(ramp())
    torch.testing.assert_close(x[0, 0] * 255, torch.arange(8.0) * 10)


def test_flips_are_flips():
    transform = training_transform(TrainConfig(augment=("flip",)), UNIT)
    seen = set()
    for number in range(12):
        with seeded(number):
            row = (transform(ramp())[0, 0] * 255).round().long().tolist()
        seen.add(tuple(row))
    assert seen == {tuple(range(0, 80, 10)), tuple(range(70, -10, -10))}


def test_vertical_flips_turn_images_over():
    transform = training_transform(TrainConfig(augment=("vflip",)), UNIT)
    seen = set()
    for number in range(12):
        with seeded(number):
            seen.add(tuple((transform(ramp())[1, :, 0] * 255).round().long().tolist()))
    assert seen == {tuple(range(0, 80, 10)), tuple(range(70, -10, -10))}


def test_colours_change_and_positions_stay():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    with seeded(1):
        x = training_transform(TrainConfig(augment=("colour",)), UNIT)(image)
    assert len(x.flatten(1).unique(dim=1)[0]) == 1  # still one colour
    assert not torch.allclose(x[:, 0, 0] * 255, torch.tensor([200.0, 100.0, 50.0]), atol=1)


def test_a_crop_is_a_window_of_the_resized_image():
    transform = training_transform(TrainConfig(augment=("crop",), resize=12), UNIT)
    corners = set()
    for number in range(40):
        with seeded(number):
            x = (transform(ramp(12, 12)) * 255).round().long()
        left, top = int(x[0, 0, 0]) // 10, int(x[1, 0, 0]) // 10
        assert x[0, 3].tolist() == [10 * (left + i) for i in range(8)]
        corners.add((left, top))
    assert {left for left, _ in corners} == set(range(5)) == {top for _, top in corners}


def test_boxes_follow_crops_and_flips():
    config = TrainConfig(augment=("crop", "flip", "vflip", "colour"), input_size=48, resize=64)
    unit = Preprocess(input_size=(48, 48), resize=(48, 48), mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[8:20, 12:40] = 255  # of a 64 x 64 image after resizing: rows 16 to 40, columns 12 to 40
    box = torch.tensor([[12 / 64, 8 / 32, 40 / 64, 20 / 32]])
    seen = set()
    for number in range(20):
        with seeded(number):
            image = training_transform(config, unit)(Image.fromarray(pixels))
        with seeded(number):
            moved = move_boxes(config, unit, box)[0] * 48
        rows, columns = (image[0] > 0.3).nonzero().T
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(moved, torch.stack(drawn).float(), atol=1.01, rtol=0)
        seen.add(tuple(moved.round().long().tolist()))
    assert len(seen) > 15


def test_maps_move_with_their_image():
    config = TrainConfig(augment=("crop", "flip", "vflip"), resize=10)
    red = torch.arange(8.0).expand(8, 8) * 10 / 255
    seen = set()
    for number in range(12):
        with seeded(number):
            image = training_transform(config, UNIT)(ramp())
        with seeded(number):
            moved = move_map(config, UNIT, red)
        torch.testing.assert_close(moved, image[0], atol=1.01 / 255, rtol=0)  # images are rounded to bytes
        seen.add(tuple((moved[0] * 255).round().tolist()))
    assert len(seen) > 3


def test_the_default_resize_is_eight_sevenths():
    transform = training_transform(TrainConfig(input_size=224), UNIT)
    assert "Resize(size=[256, 256]" in repr(transform) and "RandomCrop(size=(224, 224)" in repr(transform)


def test_grey_models_get_one_channel():
    grey = Preprocess(input_size=(8, 8), resize=(8, 8), mean=(0.0,), std=(1.0,), channels=1)
    x = training_transform(TrainConfig(augment=()), grey)(Image.new("RGB", (8, 8), (255, 255, 255)))
    assert x.shape == (1, 8, 8) and torch.all(x == 1)


def test_hide_and_seek_hides_whole_cells():
    with seeded(4):
        x = HideAndSeek(grid=4, drop=0.5)(torch.ones(3, 10, 12))
    rows, columns = torch.arange(10) * 4 // 10, torch.arange(12) * 4 // 12
    cells = [x[:, rows == i][:, :, columns == j] for i in range(4) for j in range(4)]
    assert all(len(cell.unique()) == 1 for cell in cells)
    assert 0 < sum(float(cell.max()) for cell in cells) < 16
    assert torch.all(HideAndSeek(drop=0.0)(torch.ones(3, 8, 8)) == 1)
    assert torch.all(HideAndSeek(drop=1.0)(torch.ones(3, 8, 8)) == 0)


def test_cells_of_hide_and_seek_in_pixels():
    transform = training_transform(TrainConfig(augment=("has",), has_cell=6, input_size=16, has_grid=1), UNIT)
    with seeded(2):
        x = transform(Image.new("RGB", (8, 8), (255, 255, 255)))
    cells = [cell for rows in x[0].split(6, 0) for cell in rows.split(6, 1)]  # sides 6, 6 and 4
    assert len(cells) == 9 and all(len(cell.unique()) == 1 for cell in cells)
    assert 0 < sum(float(cell.max()) for cell in cells) < 9


def test_cutmix_shares_are_the_shares_of_pixels():
    images = torch.stack([torch.full((1, 10, 10), float(i)) for i in range(3)])
    with seeded(8):
        mixed, shares = cutmix(images, torch.tensor([0, 1, 2]), 3, alpha=1.0)
    for own in range(3):
        other = (own - 1) % 3
        part = float((mixed[own] == other).float().mean())
        assert 0 < part < 1
        expected = torch.zeros(3)
        expected[own], expected[other] = 1 - part, part
        torch.testing.assert_close(shares[own], expected)
