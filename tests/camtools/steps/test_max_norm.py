import math

import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import CAM, MaxNorm, MinMax, State


def normalise(maps, *args):
    return MaxNorm(*args)(State(maps=maps)).maps


def test_hand_worked():
    maps = torch.tensor([-10.0, 1.0, 2.0, 3.0, 6.0]).view(1, 1, 1, 5)
    torch.testing.assert_close(normalise(maps).flatten(), torch.tensor([0.0, 1 / 6, 1 / 3, 0.5, 1.0]))
    # The 75th percentile is 3; what is above it becomes 1.
    torch.testing.assert_close(normalise(maps, 75).flatten(), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 1.0]))


@pytest.mark.parametrize("percentile", [10, 66.6, 90, 100])
def test_equals_numpy(percentile):
    maps = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0)) + 2
    positive = np.maximum(maps.numpy(), 0)
    high = np.percentile(positive.astype(np.float64), percentile, axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(normalise(maps, percentile).numpy(), np.minimum(positive / high, 1), atol=2e-6)


def test_of_a_map_without_negative_values_and_with_a_zero_it_is_min_max():
    features, weights = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 3)
    state = CAM(relu=True)(State(features=features, weights=weights))
    torch.testing.assert_close(MaxNorm()(state).maps, MinMax()(state).maps)


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan, math.inf, -math.inf])
def test_maps_that_show_nothing_are_zeros(value):
    maps = torch.full((1, 1, 3, 3), -1.0)
    maps[0, 0, 1, 1] = value
    assert normalise(maps).eq(0).all()


@pytest.mark.parametrize("percentile", [-1, 100.5, math.nan, "90"])
def test_refusals(percentile):
    with pytest.raises(PipelineError, match=r"MaxNorm.*percentile"):
        MaxNorm(percentile)
