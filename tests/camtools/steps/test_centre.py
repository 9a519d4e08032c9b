"""Centre: a Gaussian by hand, for every image and class."""

import math

import pytest
import torch

from camtools.errors import PipelineError
from camtools.steps import Centre, State


def test_a_gaussian_about_the_centre():
    state = State(features=torch.zeros(2, 5, 1, 4), labels=torch.zeros(2, 3, dtype=torch.int64))
    maps = Centre()(state).maps
    side, middle = math.exp(-(1.5**2) / 2), math.exp(-(0.5**2) / 2)  # 3/8 and 1/8 of the side from the centre
    torch.testing.assert_close(maps, torch.tensor([side, middle, middle, side]).expand(2, 3, 1, 4))
    with pytest.raises(PipelineError, match=r"Centre\(\) needs features"):
        Centre()(State())
