import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import CAM, Stage, State

FEATURES = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 2.0]]]])  # one image, two channels, 2 x 2


def random_state(batch, weights_batch, classes, *, positions=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(batch, 5, 3, 4, generator=generator)
    shape = (weights_batch, classes, 5, 3, 4) if positions else (weights_batch, classes, 5)
    return State(features=features.to(dtype), weights=torch.randn(shape, generator=generator).to(dtype))


def test_hand_worked():
    weights = torch.tensor([[[2.0, -3.0], [0.5, 1.0]]])
    maps = CAM()(State(features=FEATURES, weights=weights)).maps
    assert maps.tolist() == [[[[2.0, 1.0], [6.0, 2.0]], [[0.5, 2.0], [1.5, 4.0]]]]


def test_relu_sets_negative_values_to_zero():
    weights = torch.tensor([[[1.0, -3.0]]])
    state = State(features=FEATURES, weights=weights)
    assert CAM()(state).maps.tolist() == [[[[1.0, -1.0], [3.0, -2.0]]]]
    assert CAM(relu=True)(state).maps.tolist() == [[[[1.0, 0.0], [3.0, 0.0]]]]


def test_weights_that_vary_over_positions_hand_worked():
    weights = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[5.0, 3.0], [7.0, -1.0]]]).view(1, 1, 2, 2, 2)
    # position by position: 1*1 + 5*0, 0*2 + 3*1, 0*3 + 7*0, 2*4 - 1*2
    assert CAM()(State(features=FEATURES, weights=weights)).maps.tolist() == [[[[1.0, 3.0], [0.0, 6.0]]]]


@pytest.mark.parametrize("weights_batch", [1, 3])
@pytest.mark.parametrize("positions", [False, True])
def test_equals_numpy(weights_batch, positions):
    state = random_state(3, weights_batch, 2, positions=positions, dtype=torch.float64)
    features, weights = state.features.numpy(), state.weights.numpy()
    weights = weights if positions else weights[..., None, None]
    expected = (np.broadcast_to(weights, (3, 2, 5, *weights.shape[3:])) * features[:, None]).sum(2)
    maps = CAM()(state).maps
    assert maps.shape == (3, 2, 3, 4)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-12)


def test_mean_of_the_map_is_the_logit_without_bias():
    state = random_state(4, 1, 6, dtype=torch.float64)
    logits = state.features.mean((2, 3)) @ state.weights[0].T
    torch.testing.assert_close(CAM()(state).maps.mean((2, 3)), logits)


@pytest.mark.parametrize("positions", [False, True])
def test_gradients_reach_features_and_weights(positions):
    state = random_state(2, 1, 3, positions=positions, dtype=torch.float64)
    state.features.requires_grad_()
    state.weights.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w: CAM()(State(features=f, weights=w)).maps, (state.features, state.weights)
    )


def test_computes_in_the_features_dtype():
    state = random_state(2, 1, 3)
    half = State(features=state.features.bfloat16(), weights=state.weights)
    maps = CAM()(half).maps
    assert maps.dtype == torch.bfloat16
    torch.testing.assert_close(maps.float(), CAM()(state).maps, atol=0.1, rtol=0.05)


def test_other_fields_stay():
    state = random_state(2, 1, 3)
    result = CAM()(state)
    assert result.features is state.features and result.weights is state.weights and state.maps is None


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 6), (2, 2, 5), (2, 5), (1, 2, 5, 3, 3), (1, 2, 5, 3)],
    ids=["channels", "batch", "dims", "grid", "half a grid"],
)
def test_shapes_that_do_not_fit_are_named(shape):
    features = torch.zeros(3, 5, 3, 4)
    with pytest.raises(PipelineError) as error:
        CAM()(State(features=features, weights=torch.zeros(shape)))
    assert f"weights of shape {shape}" in str(error.value)
    assert "expected (3 or 1, K', 5), or (3 or 1, K', 5, 3, 4)" in str(error.value)


def test_features_without_a_grid_are_named():
    with pytest.raises(PipelineError, match=r"features of shape \(B, C, h, w\), got \(3, 5\)"):
        CAM()(State(features=torch.zeros(3, 5), weights=torch.zeros(1, 2, 5)))


@pytest.mark.parametrize("missing", ["features", "weights"])
def test_missing_fields_are_named(missing):
    with pytest.raises(PipelineError, match=rf"CAM\(relu=False\) needs {missing}"):
        CAM()(random_state(1, 1, 1).replace(**{missing: None}))


def test_relu_must_be_a_bool():
    with pytest.raises(PipelineError, match=r"relu='yes'\): relu must be True or False"):
        CAM(relu="yes")


def test_declares_itself():
    assert (repr(CAM(relu=True)), CAM.stage, CAM.resolution) == ("CAM(relu=True)", Stage.MAP, "feature")
