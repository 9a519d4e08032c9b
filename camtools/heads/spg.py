"""SPG's head (Zhang et al., ECCV 2018): a classifier, and beside it branches that learn masks from its maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from camtools.checks import whole
from camtools.errors import ModelError
from camtools.heads.layers import conv_relu, of_classes, xavier


class SPG(nn.Module):
    """Class scores by convolutions of its own, with three branches that the recipe `spg` trains to guide them.

    A1 is the network in front. A2 is three 3 x 3 convolutions with ReLU, A3 two more, A4 a 1 x 1 convolution to class
    maps, whose means are the logits. B1 branches off before A2, B2 after it, C after A3; each gives one map of the
    object. Nothing of the branches is in the scores; class maps are linear in what A3 gives.

    Source: Zhang et al., "Self-produced Guidance for Weakly-supervised Object Localization", ECCV 2018, section 3.2,
    with wsolevaluation's layers.

    Args:
        channels: C of the features.
        classes: K.
        width: Channels of the convolutions (512).

    Raises:
        ModelError: A number is out of range.
    """

    makes_logits = True

    def __init__(self, channels: int, classes: int, width: int = 512) -> None:
        super().__init__()
        self.channels, self.classes, self.width = (
            whole(name, value, error=ModelError)
            for name, value in (("channels", channels), ("classes", classes), ("width", width))
        )
        self.a2 = nn.Sequential(*conv_relu(channels, width), *conv_relu(width, width), *conv_relu(width, width))
        self.a3 = nn.Sequential(*conv_relu(width, width), *conv_relu(width, width))
        self.a4 = nn.Conv2d(width, classes, 1)
        self.b1 = nn.Sequential(*conv_relu(channels, width))
        self.b2 = nn.Sequential(*conv_relu(width, width))
        self.shared = nn.Sequential(*conv_relu(width, width), nn.Conv2d(width, 1, 1))
        self.c = nn.Sequential(*conv_relu(width, width), nn.Conv2d(width, 1, 1))
        xavier(self)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {"channels": self.channels, "classes": self.classes, "width": self.width}

    def branches(self, features: Tensor) -> dict[str, Tensor]:
        """Return class maps, "maps" (B, K, h, w), and the logits of "b1", "b2" and "c", (B, 1, h, w).

        Args:
            features: F, (B, C, h, w).
        """
        middle = self.a2(features)
        late = self.a3(middle)
        return {
            "maps": self.a4(late),
            "b1": self.shared(self.b1(features)),
            "b2": self.shared(self.b2(middle)),
            "c": self.c(late),
        }

    def maps(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return maps of some classes, (B, K', h, w), for the step `HeadMaps`.

        Args:
            features: F, (B, C, h, w).
            labels: (B, K').
        """
        return of_classes(self.a4(self.a3(self.a2(features))), labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C, h, w)."""
        maps: Tensor = self.a4(self.a3(self.a2(features)))
        return maps.mean((2, 3))
