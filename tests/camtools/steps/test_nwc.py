import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import CAM, NWC, Stage, State


def test_negative_weights_become_zero():
    weights = torch.tensor([[[2.0, -3.0, 0.0], [-1.0, -0.5, 4.0]]])
    state = State(weights=weights)
    result = NWC()(state)
    assert result.weights.tolist() == [[[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]]]
    assert state.weights is weights and weights.min() == -3, "the given state must stay as it was"


def test_weights_that_vary_over_positions():
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0]).view(1, 1, 1, 2, 2)
    assert NWC()(State(weights=weights)).weights.flatten().tolist() == [1.0, 0.0, 3.0, 0.0]


def test_map_is_the_sum_over_positive_weights():
    features = torch.tensor([[[[1.0, 2.0]], [[5.0, 0.0]]]])  # F_1 = (1, 2), F_2 = (5, 0)
    state = State(features=features, weights=torch.tensor([[[3.0, -1.0]]]))
    assert CAM()(NWC()(state)).maps.tolist() == [[[[3.0, 6.0]]]]


def test_keeps_dtype_and_gradients():
    weights = torch.tensor([[[2.0, -3.0]]], dtype=torch.bfloat16, requires_grad=True)
    result = NWC()(State(weights=weights)).weights
    result.sum().backward()
    assert result.dtype == torch.bfloat16
    assert weights.grad.tolist() == [[[1.0, 0.0]]]


def test_missing_weights_are_named():
    with pytest.raises(PipelineError, match=r"NWC\(\) needs weights"):
        NWC()(State())


def test_declares_itself():
    assert (repr(NWC()), NWC.stage, NWC.resolution) == ("NWC()", Stage.WEIGHTS, "feature")
