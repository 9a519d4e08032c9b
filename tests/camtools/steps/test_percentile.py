import math

import numpy as np
import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps.percentile import percentile_of

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("percentile", [0, 1, 33.3, 49.9, 50, 50.1, 75, 90, 98, 99.99, 100])
@pytest.mark.parametrize("shape", [(2, 3, 14, 9), (1, 1), (1, 2), (5, 3, 1), (0, 4, 4)])
def test_equals_numpy(shape, percentile, device):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = np.percentile(maps.numpy(), percentile, axis=(-2, -1)) if maps.numel() else np.zeros(shape[:-2])
    result = percentile_of(maps.to(device), percentile)
    assert result.shape == shape[:-2]
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-12, atol=1e-15)


def test_hand_worked():
    maps = torch.tensor([[1.0, 4.0], [2.0, 8.0]])
    assert [percentile_of(maps, p).item() for p in (0, 50, 75, 100)] == [1.0, 3.0, 5.0, 8.0]


@pytest.mark.parametrize("percentile", [10, 60, 98])
def test_many_equal_values(percentile):
    maps = torch.randint(0, 3, (4, 20, 20), generator=torch.Generator().manual_seed(0)).float()
    expected = np.percentile(maps.numpy(), percentile, axis=(1, 2))
    np.testing.assert_allclose(percentile_of(maps, percentile).numpy(), expected)


@pytest.mark.parametrize("percentile", [5, 95])
def test_nan_in_a_map_makes_its_percentile_nan_as_in_numpy(percentile):
    maps = torch.arange(18.0).view(2, 3, 3).clone()
    maps[0, 1, 1] = math.nan
    result = percentile_of(maps, percentile)
    assert result[0].isnan() and result[1].item() == pytest.approx(np.percentile(maps[1].numpy(), percentile))


def test_more_elements_than_torch_quantile_takes():
    maps = torch.arange(2**24 + 2, dtype=torch.float32).view(2, 1, -1)
    expected = np.percentile(maps.numpy(), 99, axis=(1, 2))
    np.testing.assert_allclose(percentile_of(maps, 99).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("percentile", [30, 90])
def test_gradients(percentile):
    maps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: percentile_of(m, percentile), maps)


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan, "50", None])
def test_out_of_range_is_named(value):
    with pytest.raises(PipelineError) as error:
        percentile_of(torch.ones(2, 2), value)
    assert f"percentile_of(percentile={value!r}): percentile must be a number, 0 <= percentile <= 100." in str(
        error.value
    )
