import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import MinMax, Stage, State


def normalise(maps):
    return MinMax()(State(maps=maps)).maps


def test_hand_worked_each_map_on_its_own():
    maps = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]], [[10.0, 30.0], [20.0, 10.0]]]])
    assert normalise(maps).tolist() == [[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 1.0], [0.5, 0.0]]]]
    assert maps.min() == -1, "the given maps must stay as they were"


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_constant_map_counts_as_zeros(value):
    assert normalise(torch.full((1, 1, 3, 4), value)).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_map_that_is_not_finite_counts_as_zeros_alone(bad):
    maps = torch.arange(24.0).view(2, 1, 3, 4).clone()
    maps[0, 0, 1, 1] = bad
    result = normalise(maps)
    assert result[0].eq(0).all()
    torch.testing.assert_close(result[1, 0].flatten(), torch.arange(12.0) / 11)


def test_spans_zero_to_one_exactly_whatever_the_scale():
    maps = torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1.0, 1e30):
        result = normalise(maps * scale)
        assert result.amin((2, 3)).eq(0).all() and result.amax((2, 3)).eq(1).all()
    torch.testing.assert_close(normalise(3 * maps - 7), normalise(maps), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_result_is_float32(dtype):
    result = normalise(torch.tensor([[[[0, 1, 2]]]], dtype=dtype))
    assert result.dtype == torch.float32 and result.flatten().tolist() == [0.0, 0.5, 1.0]


def test_gradients_stay_finite():
    maps = torch.tensor([[[[1.0, 2.0, 4.0]], [[5.0, 5.0, 5.0]]]], requires_grad=True)
    normalise(maps)[0, :, 0, 1].sum().backward()
    # d/dx2 (x2 - x1) / (x3 - x1) = 1/3 for the first map; nothing for the constant one.
    assert maps.grad.isfinite().all()
    assert maps.grad[0, 0, 0, 1].item() == pytest.approx(1 / 3)
    assert maps.grad[0, 1].eq(0).all()


def test_missing_maps_are_named():
    with pytest.raises(PipelineError, match=r"MinMax\(\) needs maps"):
        MinMax()(State())


def test_declares_itself():
    assert (repr(MinMax()), MinMax.stage, MinMax.resolution) == ("MinMax()", Stage.REFINE, "image")
    assert MinMax.normalises
