"""ACoL's head (Zhang et al., CVPR 2018): two classifiers, the second on features without what the first found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from camtools.checks import number, whole
from camtools.errors import ModelError
from camtools.heads.layers import conv_relu, of_classes, xavier, zero_to_one


class ACoL(nn.Module):
    """Class scores by convolutions of its own, and maps that are the larger of two classifiers' at each position.

    Both classifiers are two 3 x 3 convolutions with ReLU and a 1 x 1 convolution to class maps, whose means are
    scores. The second sees the features without the positions where the first one's map, from 0 to 1, is at least
    `delta`. The logits are the first one's; the step `HeadMaps` reads the maps.

    Source: Zhang et al., "Adversarial Complementary Learning for Weakly Supervised Object Localization", CVPR 2018,
    section 3.2, with wsolevaluation's layers.

    Args:
        channels: C of the features.
        classes: K.
        width: Channels of the convolutions.
        delta: Threshold of what is erased, in (0, 1].

    Raises:
        ModelError: A number is out of range.
    """

    makes_logits = True

    def __init__(self, channels: int, classes: int, width: int = 1024, delta: float = 0.7) -> None:
        super().__init__()
        self.channels, self.classes, self.width = (
            whole(name, value, error=ModelError)
            for name, value in (("channels", channels), ("classes", classes), ("width", width))
        )
        self.delta = number("delta", delta, "(0, 1]", owner="ACoL", error=ModelError)
        self.first, self.second = (
            nn.Sequential(*conv_relu(channels, width), *conv_relu(width, width), nn.Conv2d(width, classes, 1))
            for _ in range(2)
        )
        xavier(self)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {"channels": self.channels, "classes": self.classes, "width": self.width, "delta": self.delta}

    def both(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return both classifiers' maps, (B, K, h, w) each; the second's without what the first found of a class.

        Args:
            features: F, (B, C, h, w).
            labels: That class, (B,).
        """
        smooth = _smooth(features)
        first: Tensor = self.first(smooth)
        found = zero_to_one(of_classes(first.detach(), labels[:, None])) >= self.delta
        return first, self.second(smooth * ~found)

    def maps(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return maps of some classes, (B, K', h, w) in [0, 1], for the step `HeadMaps`.

        Args:
            features: F, (B, C, h, w).
            labels: (B, K').
        """
        smooth = _smooth(features)
        own, columns = zero_to_one(of_classes(self.first(smooth), labels)), []
        for column, label in enumerate(labels.unbind(1)):  # what the second sees depends on the class
            first = own[:, column : column + 1]
            second = zero_to_one(of_classes(self.second(smooth * (first < self.delta)), label[:, None]))
            columns.append(torch.maximum(first, second))
        return torch.cat(columns, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C, h, w)."""
        maps: Tensor = self.first(_smooth(features))
        return maps.mean((2, 3))


def _smooth(features: Tensor) -> Tensor:
    return avg_pool2d(features, 3, stride=1, padding=1)
