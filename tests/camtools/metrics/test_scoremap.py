"""Score maps: resized as OpenCV does, normalised and quantised as the protocol says."""

import numpy as np
import pytest
import torch

from camtools.errors import InputError
from camtools.metrics import normalise, resize_cubic, scoremaps

SHAPES = [(1, 1), (1, 7), (2, 3), (7, 7), (5, 9), (14, 14), (28, 28), (13, 224), (224, 112), (256, 340), (375, 500)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [(224, 224), (97, 131)], ids=str)
def test_resizing_is_opencvs_bit_for_bit(shape, size):
    reference = pytest.importorskip("wsol_reference", exc_type=ImportError)
    scores = np.random.default_rng(0).standard_normal((3, *shape))
    expected = np.stack([reference.resized(score, size[::-1]) for score in scores])
    assert np.array_equal(resize_cubic(torch.from_numpy(scores), size).numpy(), expected)
    levels = np.stack([reference.levels_of(score) for score in expected])
    assert np.array_equal(scoremaps(torch.from_numpy(scores), size).numpy(), levels)


def test_maps_of_the_wanted_size_are_left_alone():
    maps = torch.rand(2, 4, 5, dtype=torch.float64)
    assert resize_cubic(maps, (4, 5)) is maps


def test_levels_are_floored():
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])  # normalised 0, .25, .5, 1
    assert normalise(maps, None).tolist() == [[[0.0, 0.25], [0.5, 1.0]]]
    assert scoremaps(maps, None).tolist() == [[[0, 63], [127, 255]]]
    assert scoremaps(maps.int(), None).equal(scoremaps(maps, None))


def test_constant_and_nan_maps_count_as_zeros_and_spoil_no_other():
    good = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    maps = torch.stack([good, torch.full((2, 2), 3.0), good.where(good != 2, torch.nan), good])
    assert normalise(maps, None).equal(torch.stack([good / 4, torch.zeros(2, 2), torch.zeros(2, 2), good / 4]).double())
    assert scoremaps(maps)[1:3].eq(0).all()


def test_many_maps_are_the_same_as_one_by_one():
    maps = torch.rand(19, 7, 7)
    assert scoremaps(maps).equal(torch.cat([scoremaps(one[None]) for one in maps]))
    assert scoremaps(maps[:0]).shape == (0, 224, 224)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(cuda):
    maps = torch.randn(9, 7, 7)
    assert scoremaps(maps.to(cuda)).cpu().equal(scoremaps(maps))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.rand(2, 3, 4, 4), r"expected shape \(B, H, W\).* got \(2, 3, 4, 4\).*maps\[:, k\]"),
        ([[1.0]], r"expected shape \(B, H, W\).* got \(1, 1\)"),
        (torch.rand(1, 0, 4), r"got \(1, 0, 4\)"),
        (torch.tensor([[[0.0, 1.0]], [[0.0, torch.inf]]]), r"maps\[1\] has an infinite value"),
    ],
)
def test_what_is_no_map_is_refused(maps, message):
    with pytest.raises(InputError, match=message):
        scoremaps(maps)


@pytest.mark.parametrize("size", [224, (224, 0), (224.0, 224), [224, 224]])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match=r"size=.*expected \(height, width\), two positive integers, or None"):
        scoremaps(torch.rand(1, 3, 3), size)
