import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import IVR, FixedThreshold, RangeThreshold, State


def test_by_hand():
    maps = torch.tensor([[[[0.0, 0.1, 0.2, 0.3, 1.0]], [[0.5, 0.5, 0.5, 0.5, 0.5]]]])
    result = RangeThreshold(percentile=50, theta=0.1)(State(maps=maps))
    torch.testing.assert_close(result.thresholds, torch.tensor([[0.28, 0.5]]))  # 0.2 + 0.1 * 0.8
    assert result.masks.tolist() == [[[[False, False, False, True, True]], [[False] * 5]]]
    assert result.maps is maps


@pytest.mark.parametrize(("percentile", "theta"), [(0, 0.0), (0, 0.2), (30, 0.22), (45, 0.25), (99, 0.9)])
def test_it_keeps_what_ivr_and_a_fixed_threshold_keep(percentile, theta):
    maps = torch.rand(3, 2, 17, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    ours = RangeThreshold(percentile, theta)(State(maps=maps))
    theirs = FixedThreshold(theta)(IVR(percentile)(State(maps=maps)))
    assert ours.masks.equal(theirs.masks)
    low = np.percentile(maps.numpy(), percentile, axis=(2, 3))
    expected = low + theta * (maps.amax((2, 3)).numpy() - low)
    np.testing.assert_allclose(ours.thresholds.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("theta", [-0.1, 1, 1.5, float("nan"), "0.2", None])
def test_theta_out_of_range(theta):
    with pytest.raises(PipelineError, match=r"RangeThreshold\(theta=.*: theta must be a number, 0 <= theta < 1"):
        RangeThreshold(theta=theta)


@pytest.mark.parametrize("percentile", [-1, 100, float("nan"), "30"])
def test_percentile_out_of_range(percentile):
    with pytest.raises(PipelineError, match="RangeThreshold"):
        RangeThreshold(percentile)
