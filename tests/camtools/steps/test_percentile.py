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


_KINDS = {
    "smooth": lambda n: np.sin(np.arange(n) / 9000),
    "noise": lambda n: np.random.default_rng(0).normal(size=n),
    "mostly one value": lambda n: np.maximum(0, np.random.default_rng(0).normal(size=n) - 1),
    "constant": lambda n: np.ones(n),
    "misleads every sample": lambda n: (np.arange(n) % (n // 2**14) == 0).astype(float),
}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("percentile", [0, 0.001, 30, 98, 99.999, 100])
def test_large_maps_are_sampled_and_still_exact(kind, percentile):
    values = _KINDS[kind](2**20 + 77).astype(np.float32)
    expected = np.percentile(values.astype(np.float64), percentile)
    assert percentile_of(torch.from_numpy(values)[None], percentile).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("place", [5, 64, 2**20])
def test_one_nan_in_a_large_map(place):
    values = torch.linspace(0, 1, 2**20 + 77).repeat(2, 1, 1)
    values[0, 0, place] = math.nan
    assert percentile_of(values, 30).isnan().tolist() == [True, False]


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
