import math

import pytest
import torch

from camtools.errors import InputError
from camtools.metrics import average_precision

SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
CORRECT = torch.tensor([True, False, True, True, False])


def test_hand_worked():
    # precision 1, 1/2, 2/3, 3/4, 3/5; from any recall on at most 1, 3/4, 3/4, 3/4, 3/5; 4 objects, 3 found
    assert average_precision(SCORES, CORRECT, 4).item() == pytest.approx(100 * (1 + 3 / 4 + 3 / 4) / 4)
    # recalls 0, .1, .2: 1; .3 to .7: 3/4; .8, .9, 1: never reached
    eleven = average_precision(SCORES, CORRECT, 4, "11-point")
    assert eleven.item() == pytest.approx(100 * (3 * 1 + 5 * 3 / 4) / 11)


def test_the_order_given_does_not_matter():
    order = torch.tensor([3, 0, 4, 2, 1])
    assert average_precision(SCORES[order], CORRECT[order], 4) == average_precision(SCORES, CORRECT, 4)


def test_of_equal_scores_the_earlier_comes_first():
    tied = torch.tensor([0.5, 0.5])
    assert average_precision(tied, torch.tensor([True, False]), 1) == 100
    assert average_precision(tied, torch.tensor([False, True]), 1) == 50


@pytest.mark.parametrize("positives", range(1, 41))
def test_eleven_points_are_compared_without_rounding(positives):
    scores = -torch.arange(float(positives))
    assert average_precision(scores, scores < 1, positives, "11-point").item() == pytest.approx(100)
    # Only the first right: recall 1/positives reaches k/10 where 10 >= k * positives.
    expected = 100 * (10 // positives + 1) / 11 if positives > 1 else 100
    assert average_precision(scores, scores == 0, positives, "11-point").item() == pytest.approx(expected)


@pytest.mark.parametrize("interpolation", ["area", "11-point"])
def test_nothing_found_and_nothing_to_find(interpolation):
    none, no = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    assert average_precision(none, no, 3, interpolation) == 0
    assert average_precision(SCORES, torch.zeros(5, dtype=torch.bool), 3, interpolation) == 0
    assert math.isnan(average_precision(none, no, 0, interpolation))


def test_unknown_interpolation_is_named():
    with pytest.raises(InputError, match=r"average_precision\(interpolation='101'\): expected 'area'"):
        average_precision(SCORES, CORRECT, 4, "101")
