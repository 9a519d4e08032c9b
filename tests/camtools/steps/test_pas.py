import math

import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import FixedThreshold, PaS, Stage, State


def test_hand_worked_strictly_above():
    maps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 5)
    result = PaS(percentile=50, threshold=0.5)(State(maps=maps))  # per_50 = 0.5
    assert result.thresholds.tolist() == [[0.25]]
    assert result.masks.flatten().tolist() == [False, False, True, True, True]


def test_one_outlier_does_not_move_the_threshold():
    maps = torch.full((1, 1, 20, 20), 0.1)
    maps[..., 5:15, 5:15] = 0.4
    maps[..., 9, 9] = 4.0
    maps = maps / 4
    inside = PaS(percentile=98, threshold=0.5)(State(maps=maps)).masks  # per_98 = 0.1, of the object
    assert inside.sum() == 100 and inside[..., 5:15, 5:15].all()
    assert FixedThreshold(0.5)(State(maps=maps)).masks.sum() == 1  # the maximum as standard keeps the outlier alone


@pytest.mark.parametrize("percentile", [0, 37.5, 90, 98, 100])
def test_equals_numpy(percentile):
    maps = torch.rand(3, 2, 13, 17, generator=torch.Generator().manual_seed(0))
    result = PaS(percentile, 0.35)(State(maps=maps))
    expected = 0.35 * np.percentile(maps.double().numpy(), percentile, axis=(2, 3))
    np.testing.assert_allclose(result.thresholds.numpy(), expected, rtol=1e-6)
    assert result.masks.equal(maps > result.thresholds[..., None, None])


def test_percentile_100_is_the_fixed_threshold():
    state = State(maps=torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert PaS(100, 0.3)(state).masks.equal(FixedThreshold(0.3)(state).masks)


def test_map_of_zeros_gets_an_empty_mask():
    assert not PaS()(State(maps=torch.zeros(1, 1, 3, 3))).masks.any()


@pytest.mark.parametrize("value", [-1, 100.5, math.nan, "98", None])
def test_percentile_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        PaS(percentile=value)
    assert f"PaS(percentile={value!r}): percentile must be a number, 0 <= percentile <= 100." in str(error.value)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "0.2", None])
def test_threshold_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        PaS(threshold=value)
    assert str(error.value) == f"PaS(threshold={value!r}): threshold must be a number, 0 <= threshold <= 1."


def test_numpy_numbers_are_numbers():
    step = PaS(np.int64(90), np.float32(0.5))
    assert step(State(maps=torch.ones(1, 1, 2, 2))).thresholds.item() == 0.5


def test_declares_itself():
    step = PaS()
    assert (step.stage, step.resolution) == (Stage.THRESHOLD, "image")
    assert repr(PaS(90, 0.35)) == "PaS(percentile=90, threshold=0.35)"


def test_missing_maps_are_named():
    with pytest.raises(PipelineError, match="needs maps"):
        PaS()(State())
