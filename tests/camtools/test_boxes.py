import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.measure import label, regionprops

from camtools.boxes import boxes_from_masks, boxes_from_parts
from camtools.errors import InputError
from camtools.parts import mask_of_runs

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


def mask_of(*rows):
    return torch.tensor([[character == "#" for character in row] for row in rows])


def with_opencv(mask):
    """Boxes by OpenCV in our order: area falling, then the first pixel in reading order."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    first = [np.flatnonzero(labels.ravel() == k)[0] for k in range(1, count)]
    order = sorted(range(1, count), key=lambda k: (-stats[k, cv2.CC_STAT_AREA], first[k - 1]))
    return [[x, y, x + w, y + h] for x, y, w, h, _ in stats[order].tolist()]


def with_skimage(mask):
    """The same by scikit-image."""
    regions = regionprops(label(mask, connectivity=2))
    regions.sort(key=lambda r: (-r.area, tuple(r.coords[np.lexsort((r.coords[:, 1], r.coords[:, 0]))[0]])))
    return [[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in regions]


def checkerboard(height, width):
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


def spiral():
    mask = torch.zeros(41, 41, dtype=torch.bool)
    mask[0::4] = True
    mask[:, 0] = mask[:, -1] = True
    mask[1::8, 0] = mask[5::8, -1] = False
    return mask


def smooth(*shape):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(*shape[:-2], shape[-2] // 8 + 2, shape[-1] // 8 + 2, generator=generator)
    return F.interpolate(values.flatten(0, -3)[None], shape[-2:], mode="bicubic").view(shape) > 0.3


GENERATOR = torch.Generator().manual_seed(1)
MASKS = {
    "empty": torch.zeros(6, 7, dtype=torch.bool),
    "full": torch.ones(6, 7, dtype=torch.bool),
    "checkerboard": checkerboard(9, 12),
    "even pixels": (torch.arange(9)[:, None] % 2 == 0) & (torch.arange(12) % 2 == 0),
    "one pixel": torch.ones(1, 1, dtype=torch.bool),
    "one empty pixel": torch.zeros(1, 1, dtype=torch.bool),
    "corners": mask_of("#..#", "....", "#..#"),
    "diagonal": torch.eye(8, dtype=torch.bool),
    "both diagonals": torch.eye(8, dtype=torch.bool) | torch.eye(8, dtype=torch.bool).flip(0),
    "row ends": mask_of("..##", "#...", "...#", "##.."),  # neighbours in flat order, not in the image
    "first and last": mask_of("#...", "....", "...#"),
    "one row": mask_of("##.#..###."),
    "one column": mask_of("##.#..###.").T,
    "ring in a ring": mask_of("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
    "comb": mask_of("#.#.#.#", "#.#.#.#", "#######"),
    "comb upside down": mask_of("#######", "#.#.#.#", "#.#.#.#"),
    "spiral": spiral(),
    "smooth": smooth(1, 60, 50)[0],
    **{f"noise {p}": torch.rand(23, 31, generator=GENERATOR) < p for p in (0.02, 0.1, 0.3, 0.5, 0.7, 0.95)},
}


@pytest.mark.parametrize("name", MASKS)
def test_equals_opencv_and_skimage(name):
    mask = MASKS[name]
    (boxes,) = boxes_from_masks(mask)
    assert boxes.dtype == torch.int64 and boxes.shape[1:] == (4,)
    assert boxes.tolist() == with_opencv(mask.numpy()) == with_skimage(mask.numpy())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(4, 3, 40, 33), (1, 1, 17, 90), (6, 64, 64)])
def test_batches_equal_one_mask_at_a_time(shape, device):
    masks = smooth(*shape)
    masks |= torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.02
    masks[0, ...] = False
    result = boxes_from_masks(masks.to(device))
    flat = masks.flatten(0, -3)
    assert len(result) == len(flat)
    for boxes, mask in zip(result, flat, strict=True):
        assert boxes.device.type == "cpu" and boxes.tolist() == with_opencv(mask.numpy())


def test_hand_worked():
    mask = mask_of(
        "#....##",
        ".#...##",
        "....#..",
        "##.....",
    )
    (boxes,) = boxes_from_masks(mask)
    # five pixels top right (the diagonal neighbour included), then two of two pixels, the topmost first
    assert boxes.tolist() == [[4, 0, 7, 3], [0, 0, 2, 2], [0, 3, 2, 4]]


def test_specks_are_left_out_by_their_share_of_the_largest():
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, :10, :10] = True  # 100 pixels
    masks[0, 15, 20] = masks[1, 3, 3] = True  # one pixel each: of 100, and all there is
    masks[0, 12:14, 25] = True  # two
    every, three = [[0, 0, 10, 10], [25, 12, 26, 14], [20, 15, 21, 16]], [[3, 3, 4, 4]]
    for least, count in ((0, 3), (0.01, 3), (0.011, 2), (0.02, 2), (0.021, 1), (1, 1)):
        assert [one.tolist() for one in boxes_from_masks(masks, least)] == [every[:count], three]
    for least in (-0.1, 1.1, math.nan, True, "0.1"):
        with pytest.raises(InputError, match=rf"least={least!r}: expected a number, 0 <= least <= 1"):
            boxes_from_masks(masks, least)


def test_ties_go_to_the_topmost_then_leftmost_first_pixel():
    mask = mask_of(
        "......#",
        "##....#",
        ".......",
        "....##.",
        "##.....",
    )
    (boxes,) = boxes_from_masks(mask)
    assert boxes.tolist() == [[6, 0, 7, 2], [0, 1, 2, 2], [4, 3, 6, 4], [0, 4, 2, 5]]
    (boxes,) = boxes_from_masks(mask_of("..#.#.#"))
    assert boxes[:, 0].tolist() == [2, 4, 6]


def test_masks_in_a_row_do_not_touch():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, -1], masks[1, 0], masks[2] = True, True, True
    assert [b.tolist() for b in boxes_from_masks(masks)] == [[[0, 3, 4, 4]], [[0, 0, 4, 1]], [[0, 0, 4, 4]]]


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 4, 4)])
def test_no_masks_no_boxes(shape):
    assert boxes_from_masks(torch.zeros(shape, dtype=torch.bool)) == []


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 5, 0)])
def test_masks_without_pixels_have_no_boxes(shape):
    assert [tuple(b.shape) for b in boxes_from_masks(torch.zeros(shape, dtype=torch.bool))] == [(0, 4), (0, 4)]


def test_strided_masks_and_input_untouched():
    masks = smooth(2, 30, 40)
    before = masks.clone()
    for ours, mask in zip(boxes_from_masks(masks.mT[:, ::2]), masks, strict=True):
        assert ours.tolist() == with_opencv(mask.T[::2].contiguous().numpy())
    assert masks.equal(before)


def test_boxes_do_not_share_memory():
    first, second = boxes_from_masks(torch.ones(2, 3, 3, dtype=torch.bool))
    assert first.untyped_storage().nbytes() == first.nbytes
    first += 1
    assert second.tolist() == [[0, 0, 3, 3]]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(3, 3), r"\(3, 3\) torch.float32"),
        (torch.zeros(3, dtype=torch.bool), r"\(3,\) torch.bool"),
        (np.zeros((3, 3), bool), "ndarray"),
    ],
)
def test_anything_else_is_refused(value, got):
    with pytest.raises(InputError, match=rf"needs a bool tensor of shape \(\.\.\., H, W\), got {got}"):
        boxes_from_masks(value)


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_the_parts_of_a_mask_are_its_components(name):
    mask = MASKS[name]
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(5))
    [found] = boxes_from_parts(mask, values)
    assert found.boxes.tolist() == boxes_from_masks(mask)[0].tolist()
    numbers = label(mask.numpy(), connectivity=2)
    for (x0, y0, x1, y1), peak, (x, y) in zip(found.boxes.tolist(), found.peaks, found.firsts.tolist(), strict=True):
        inside = numbers == numbers[y, x]
        assert mask[y, x] and peak == values[torch.from_numpy(inside)].max()
        rows, columns = np.nonzero(inside)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x0, y0, x1, y1]
        assert (rows[0], columns[0]) == (y, x)


def test_parts_by_hand():
    parts = torch.tensor([[[1, 1, 2, 2, 0], [1, 2, 2, 0, 1]], [[0, 0, 0, 0, 0], [0, 0, 0, 3, 3]]])
    maps = torch.tensor(
        [[[0.1, 0.2, 0.3, 0.4, 9.0], [0.5, 0.6, 0.7, 9.0, 0.8]], [[9.0] * 5, [9.0, 9.0, 9.0, 0.9, 1.0]]]
    )
    first, second = boxes_from_parts(parts, maps)
    assert first.boxes.tolist() == [[1, 0, 4, 2], [0, 0, 2, 2], [4, 1, 5, 2]]
    torch.testing.assert_close(first.peaks, torch.tensor([0.7, 0.5, 0.8]))
    assert first.firsts.tolist() == [[2, 0], [0, 0], [4, 1]]
    assert second.boxes.tolist() == [[3, 1, 5, 2]] and second.peaks.tolist() == [1.0]
    assert [one.boxes.tolist() for one in boxes_from_parts(parts, maps, least=0.5)] == [
        first.boxes[:2].tolist(),
        [[3, 1, 5, 2]],
    ]
    # IoU of the first two boxes: 2 / 8; the higher peak stays, whichever is larger.
    assert [len(boxes_from_parts(parts, maps, overlap=most)[0].boxes) for most in (0.24, 0.26)] == [2, 3]
    maps[0, 0, 0] = 0.75
    assert boxes_from_parts(parts, maps, overlap=0.2)[0].boxes.tolist() == [[0, 0, 2, 2], [4, 1, 5, 2]]
    none = boxes_from_parts(torch.zeros(2, 3, 4, dtype=torch.int32), torch.ones(2, 3, 4), overlap=0.5)
    assert [(one.boxes.shape, one.peaks.shape, one.firsts.shape) for one in none] == [((0, 4), (0,), (0, 2))] * 2
    assert boxes_from_parts(torch.zeros(0, 3, 4, dtype=torch.int32), torch.ones(0, 3, 4)) == []


def test_parts_that_are_refused():
    ones = torch.ones(3, 4)
    with pytest.raises(InputError, match=r"needs bool masks or numbered parts of shape .*, got \(3, 4\) torch.float32"):
        boxes_from_parts(ones, ones)
    with pytest.raises(InputError, match=r"needs maps of the parts' shape \(3, 4\), got \(4, 3\)"):
        boxes_from_parts(ones > 0, ones.T)
    with pytest.raises(InputError, match="overlap=2: expected a number, 0 <= overlap <= 1"):
        boxes_from_parts(ones > 0, ones, overlap=2)


@pytest.mark.parametrize("name", MASKS)
def test_runs_are_the_mask(name):
    masks = torch.stack([MASKS[name], ~MASKS[name], MASKS[name].flip(1)])
    found = boxes_from_parts(masks, torch.zeros(masks.shape))
    for own, mask in zip(found, masks.numpy(), strict=True):
        assert np.array_equal(mask_of_runs(own.runs.numpy(), mask.shape), mask)
