"""DDT: the component by hand and against numpy's SVD, the maps by hand."""

import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import DDT, State
from camtools.steps.ddt import principal_direction


def test_maps_by_hand():
    step = DDT(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    state = State(features=torch.tensor([[[[1.0, 6.0]], [[2.0, 2.0]]]]), labels=torch.tensor([[1, 0]]))
    torch.testing.assert_close(step(state).maps, torch.tensor([[[[0.0, 3.0]], [[0.0, 0.0]]]]))
    below = step(state.replace(features=torch.zeros(1, 2, 1, 2))).maps  # the mean is at 0, what is not shared below
    torch.testing.assert_close(below, torch.tensor([[[[-2.2, -2.2]], [[0.0, 0.0]]]]))
    cam = DDT()(state.replace(weights=torch.tensor([[[2.0, 0.0]]])))
    torch.testing.assert_close(cam.maps, torch.tensor([[[[2.0, 12.0]]]]))


def test_the_component_is_that_of_an_svd_and_the_middle_is_above_the_border():
    random = torch.Generator().manual_seed(3)
    features = torch.randn(6, 5, 4, 4, generator=random)
    features[:, 2, 1:3, 1:3] += 4
    mean, vector = principal_direction(features)
    flat = features.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    expected = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][0]
    assert abs(np.dot(vector.numpy(), expected)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(mean, features.mean((0, 2, 3)))
    step = DDT(mean[None], vector[None])
    maps = step(State(features=features, labels=torch.zeros(6, 1, dtype=torch.int64))).maps[:, 0]
    inside = maps[:, 1:3, 1:3].mean()
    assert inside > 2 and maps.sum() - 24 * inside < 0.35 * maps.sum()


def test_refusals():
    with pytest.raises(PipelineError, match=r"mean is \(2, 3\) and vectors None"):
        DDT(torch.zeros(2, 3))
    state = State(features=torch.zeros(1, 4, 1, 1), labels=torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(PipelineError, match=r"DDT\(mean=\(2, 3\)\) does not fit features of 4 channels"):
        DDT(torch.zeros(2, 3), torch.zeros(2, 3))(state)


@pytest.mark.parametrize("name", ["mean", "vectors"])
def test_what_is_no_tensor_is_named(name):
    with pytest.raises(PipelineError, match=rf"^DDT\({name}=0\): {name} must be a tensor, or None\.$"):
        DDT(**{name: 0})
