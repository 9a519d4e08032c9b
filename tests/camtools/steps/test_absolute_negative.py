import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import CAM, AbsoluteNegative, Stage, State


def test_weights_lose_their_sign():
    weights = torch.tensor([[[2.0, -3.0, 0.0], [-1.0, -0.5, 4.0]]])
    state = State(weights=weights)
    assert AbsoluteNegative()(state).weights.tolist() == [[[2.0, 3.0, 0.0], [1.0, 0.5, 4.0]]]
    assert weights.min() == -3, "the given state must stay as it was"


def test_weights_that_vary_over_positions():
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0]).view(1, 1, 1, 2, 2)
    assert AbsoluteNegative()(State(weights=weights)).weights.flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_map_is_positive_part_minus_negative_part():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 6, 3, 4, generator=generator)
    weights = torch.randn(2, 3, 6, generator=generator)
    maps = CAM()(AbsoluteNegative()(State(features=features, weights=weights))).maps
    # Zhang, eq. 2 and 3: M_p from the positive weights, M_n (not above 0) from the negative ones; M = M_p + abs(M_n).
    positive = CAM()(State(features=features, weights=weights.clamp_min(0))).maps
    negative = CAM()(State(features=features, weights=weights.clamp_max(0))).maps
    torch.testing.assert_close(maps, positive + negative.abs())


def test_missing_weights_are_named():
    with pytest.raises(PipelineError, match=r"AbsoluteNegative\(\) needs weights"):
        AbsoluteNegative()(State())


def test_declares_itself():
    step = AbsoluteNegative()
    assert (repr(step), step.stage, step.resolution) == ("AbsoluteNegative()", Stage.WEIGHTS, "feature")
