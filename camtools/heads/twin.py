"""Two networks as one body: their features side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Twin(nn.Module):
    """The body of a `HeadedModel` that is made of two networks: F = [F_A; F_B], (B, 2C, h, w), of the same images.

    A head with the weights [W_A, W_B] / 2 then makes the mean of both networks' class maps: the recipe `excam` with
    `acol="network"`.

    Args:
        first: A `HeadedModel` whose `features` are F_A.
        second: Likewise F_B, of the same shape.
    """

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.join = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return F, (B, 2C, h, w), of model inputs, (B, 3, H, W); it is the output of `join`."""
        second = self.second.features(x)
        # The first runs last: of two layers on one grid, steps that look at earlier stages take the later one's output.
        joined: Tensor = self.join(torch.cat([self.first.features(x), second], 1))
        return joined
