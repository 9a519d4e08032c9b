import math

import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import FixedThreshold, Stage, State


def test_hand_worked_strictly_above():
    maps = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.125], [0.25, 0.5]]]])  # maxima 1 and 0.5
    result = FixedThreshold(0.5)(State(maps=maps))
    assert result.thresholds.tolist() == [[0.5, 0.25]]
    assert result.masks.tolist() == [[[[False, False], [False, True]], [[False, False], [False, True]]]]
    assert result.masks.dtype == torch.bool and result.maps is maps


def test_theta_zero_keeps_all_but_the_zeros():
    maps = torch.tensor([0.0, 1e-6, 1.0]).view(1, 1, 1, 3)
    assert FixedThreshold(0)(State(maps=maps)).masks.flatten().tolist() == [False, True, True]


def test_mask_is_what_the_threshold_says():
    maps = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    result = FixedThreshold()(State(maps=maps))
    assert result.masks.equal(maps > result.thresholds[..., None, None])
    torch.testing.assert_close(result.thresholds, 0.2 * maps.flatten(2).max(-1).values)


def test_map_of_zeros_gets_an_empty_mask():
    assert not FixedThreshold(0)(State(maps=torch.zeros(1, 1, 3, 3))).masks.any()


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, "0.2", None])
def test_theta_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        FixedThreshold(value)
    assert str(error.value) == f"FixedThreshold(theta={value!r}): theta must be a number, 0 <= theta < 1."


def test_missing_maps_are_named():
    with pytest.raises(PipelineError, match=r"FixedThreshold\(theta=0\.2\) needs maps"):
        FixedThreshold()(State())


def test_declares_itself():
    step = FixedThreshold(0.3)
    assert (repr(step), step.stage, step.resolution) == ("FixedThreshold(theta=0.3)", Stage.THRESHOLD, "image")
