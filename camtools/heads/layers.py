"""What several heads are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camtools.heads.pooling import HeadLayer


def of_classes(maps: Tensor, labels: Tensor) -> Tensor:
    """Return some classes' maps, (B, K', h, w), of those of all, (B, K, h, w).

    Args:
        maps: Of every class.
        labels: Which, (B, K').
    """
    return maps.gather(1, labels[..., None, None].expand(-1, -1, *maps.shape[2:]))


def zero_to_one(maps: Tensor) -> Tensor:
    """Return maps from 0, at each one's minimum, to 1, at its maximum; a constant map becomes 0.

    Args:
        maps: (..., h, w).
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    # A constant map is 0 with gradient 0: the quotient's own there is infinite, or not a number.
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), 0.0)


def conv_relu(channels: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Return a 3 x 3 convolution that keeps the grid, and a ReLU."""
    return nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()


def xavier(head: nn.Module) -> None:
    """Initialise a head's convolutions as wsolevaluation does those of ACoL and SPG, in place."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class HiddenLayer(HeadLayer):
    """The mean over positions, then Linear, ReLU, Linear: what PSOL's code has before its four outputs.

    Args:
        channels: C of the features.
        classes: Outputs.
        width: Of the hidden layer.
    """

    makes_logits = True

    def __init__(self, channels: int, classes: int, width: int = 512) -> None:
        super().__init__()
        self.channels, self.classes, self.width = channels, classes, width
        self.first, self.last = nn.Linear(channels, width), nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the outputs, (B, K), of F, (B, C, h, w)."""
        out: Tensor = self.last(torch.relu(self.first(features.mean((2, 3)))))
        return out
