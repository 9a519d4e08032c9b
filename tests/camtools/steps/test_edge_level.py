import math

import pytest
import torch

from camtools import Pipeline
from camtools.errors import PipelineError
from camtools.steps import EdgeLevel, MinMax, State


def levelled(maps, **settings):
    return EdgeLevel(**settings)(State(maps=maps)).maps


ROW = torch.tensor([0.0, 0.0, 1.0, 4.0, 4.0]).view(1, 1, 1, 5)  # 0, 0, 1/4, 1, 1; slopes 0, 1/8, 1/2, 3/8, 0


def test_by_hand():
    level = (0.25 / 2 + 3 / 8) / (1 / 8 + 1 / 2 + 3 / 8)  # 1/2: nothing changes
    assert level == 0.5
    torch.testing.assert_close(levelled(ROW).flatten(), torch.tensor([0, 0, 0.25, 1, 1]))


def test_by_hand_with_a_power():
    level = (0.25 * 16 + 9) / (1 + 16 + 9)  # squares of 1, 4 and 3: 1/2 again
    assert level == 0.5
    torch.testing.assert_close(levelled(ROW, power=2).flatten(), torch.tensor([0, 0, 0.25, 1, 1]))


def test_by_hand_where_the_ground_is_high():
    """Levels 3 of 4 and up: the edge lies at 7/8, whose odds are 7."""
    maps = torch.tensor([0.0, 3.0, 3.0, 3.0, 4.0, 4.0]).view(1, 1, 1, 6)
    # normalised 0, 3/4, 3/4, 3/4, 1, 1; slopes times 8: 3, 3, 0, 1, 1, 0
    level = (3 * 0.75 + 0.75 + 1) / 8
    odds = 3 / (level / (1 - level))
    expected = torch.tensor([0, *[odds / (1 + odds)] * 3, 1, 1])
    torch.testing.assert_close(levelled(maps).flatten(), expected)
    turned = maps.mT.contiguous()
    torch.testing.assert_close(levelled(turned), levelled(maps).mT)


def test_the_level_becomes_one_half_whatever_the_contrast():
    """A smooth edge, as it is and with its values bent: the bent one comes back to the same crossing."""
    x = torch.linspace(-4, 4, 200).sigmoid().expand(1, 1, 20, 200)
    for maps in (x, x**3, x**0.3):
        result = levelled(maps)
        steep = result[0, 0, 0].diff()
        at = float((steep * result[0, 0, 0, 1:]).sum() / steep.sum())
        assert at == pytest.approx(0.5, abs=0.05)


def test_the_order_of_values_and_the_ends_stay():
    maps = torch.randn(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    result = levelled(maps)
    assert torch.equal(result.flatten(2).argsort(-1), maps.flatten(2).argsort(-1))
    assert result.amin((2, 3)).eq(0).all() and result.amax((2, 3)).eq(1).all() and result.dtype == torch.float32
    torch.testing.assert_close(levelled(maps * 5 - 3), result)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_maps_that_say_nothing_become_zeros(bad):
    maps = torch.rand(2, 1, 4, 4)
    maps[0, 0, 1, 1] = bad
    assert levelled(maps)[0].eq(0).all() and levelled(maps)[1].amax() == 1
    assert levelled(torch.full((1, 1, 4, 4), 3.0)).eq(0).all()
    assert levelled(torch.ones(1, 1, 1, 1)).eq(0).all()


def test_in_a_pipeline():
    assert Pipeline([EdgeLevel()]).summary == "CAM, EdgeLevel(1.0), MinMax, FixedThreshold(0.2)"
    assert repr(EdgeLevel(2)) == "EdgeLevel(power=2.0)"
    state = State(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 3))
    done = Pipeline([EdgeLevel()])(state)
    torch.testing.assert_close(done.maps, MinMax()(State(maps=levelled(done.raw_maps))).maps)


@pytest.mark.parametrize("power", [0, -1, "1", math.inf])
def test_powers_that_are_none(power):
    with pytest.raises(PipelineError, match=r"EdgeLevel\(power=.*\): power must be a finite number above 0"):
        EdgeLevel(power)
