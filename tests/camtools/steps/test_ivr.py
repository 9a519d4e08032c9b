import math

import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import IVR, MinMax, Stage, State


def normalise(maps, *args):
    return IVR(*args)(State(maps=maps)).maps


def test_hand_worked():
    maps = torch.tensor([-10.0, 1.0, 2.0, 3.0, 6.0]).view(1, 1, 1, 5)  # the 50th percentile is 2
    expected = torch.tensor([0.0, 0.0, 0.0, 0.25, 1.0])
    torch.testing.assert_close(normalise(maps, 50).flatten(), expected)


@pytest.mark.parametrize("percentile", [0, 20, 45, 66.6, 99])
def test_equals_numpy(percentile):
    maps = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    low = np.percentile(maps.double().numpy(), percentile, axis=(2, 3), keepdims=True)
    expected = np.maximum(maps.numpy() - low, 0) / (maps.numpy().max((2, 3), keepdims=True) - low)
    np.testing.assert_allclose(normalise(maps, percentile).numpy(), expected, atol=2e-6)


def test_percentile_zero_is_min_max():
    maps = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    assert normalise(maps, 0).equal(MinMax()(State(maps=maps)).maps)


def test_share_of_zeros_is_the_percentile():
    result = normalise(torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)), 45)
    assert result.eq(0).float().mean().item() == pytest.approx(0.45, abs=1e-3)
    assert result.max() == 1


def test_map_without_anything_above_the_percentile_counts_as_zeros():
    flat_top = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(1, 1, 2, 2)  # its 50th percentile is its maximum
    assert normalise(flat_top, 50).eq(0).all()
    assert normalise(torch.full((1, 1, 2, 2), 4.0)).eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_map_that_is_not_finite_counts_as_zeros(bad):
    maps = torch.arange(24.0).view(2, 1, 3, 4).clone()
    maps[0, 0, 1, 1] = bad
    result = normalise(maps)
    assert result[0].eq(0).all() and result[1].max() == 1


def test_result_is_float32_and_input_untouched():
    maps = torch.arange(12.0, dtype=torch.bfloat16).view(1, 1, 3, 4)
    assert normalise(maps).dtype == torch.float32
    assert maps.flatten().tolist() == list(range(12))


@pytest.mark.parametrize("value", [-1, 100, math.nan, "45", None])
def test_percentile_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        IVR(value)
    assert f"IVR(percentile={value!r}): percentile must be a number, 0 <= percentile < 100" in str(error.value)


def test_declares_itself():
    assert (repr(IVR()), IVR.stage, IVR.resolution) == ("IVR(percentile=45)", Stage.REFINE, "image")
    assert IVR.normalises


def test_missing_maps_are_named():
    with pytest.raises(PipelineError, match="needs maps"):
        IVR()(State())
