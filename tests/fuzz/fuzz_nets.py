"""A small classifier for the fuzz tests, and for command lines: `fuzz_nets.py:colours`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

COLOURS = ("red", "green", "blue")


class Colours(nn.Module):
    """Class k is the amount of colour k: one convolution, average pooling, one linear layer; F is a fourth the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_((torch.eye(3) + 0.1)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.fc.weight.copy_(10 * torch.eye(3) - 2 * (1 - torch.eye(3)))
            self.fc.bias.copy_(torch.tensor([0.1, 0.0, -0.1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.pool(self.conv(x)).flatten(1))


def colours(**options: Any) -> dict[str, Any]:
    """Return the model with what goes with it."""
    return {"model": Colours(), "mean": 0.4, "std": 0.25, "size": 32, "class_names": list(COLOURS), **options}
