"""BAS's head (Wu et al., CVPR 2022): a classifier with a fresh convolution, and a generator of foreground maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camtools.checks import whole
from camtools.errors import ModelError
from camtools.heads.layers import of_classes, xavier


class BAS(nn.Module):
    """Class scores of F by convolutions of its own, and beside them foreground maps M = sigmoid(conv(F)).

    The classifier is a 3 x 3 convolution and ReLU, a 1 x 1 convolution to class maps and ReLU, and their mean. The
    generator, a 3 x 3 convolution, has no part in the scores: the recipe `bas` trains it, and the step `HeadMaps`
    reads the mean of those of several classes: each has seen few images, all together tell objects from the rest.

    Source: Wu et al., "Background Activation Suppression", CVPR 2022, section 3; top_k from the authors' code for CUB.

    Args:
        channels: C of the features.
        classes: K.
        width: Channels of the classifier's convolution.
        top_k: Of how many classes, those with the highest scores, maps are averaged; no more than there are.

    Raises:
        ModelError: A number is out of range.
    """

    makes_logits = True

    def __init__(self, channels: int, classes: int, width: int = 1024, top_k: int = 200) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.top_k = (
            whole(name, value, error=ModelError)
            for name, value in (("channels", channels), ("classes", classes), ("width", width), ("top_k", top_k))
        )
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.score = nn.Conv2d(width, classes, 1)
        self.generator = nn.Conv2d(channels, classes, 3, padding=1)
        xavier(self)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {name: getattr(self, name) for name in ("channels", "classes", "width", "top_k")}

    def class_maps(self, features: Tensor) -> Tensor:
        """Return the classifier's maps, (B, K, h, w), not negative; their means are the logits."""
        return torch.relu(self.score(torch.relu(self.conv(features))))

    def foreground(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return M of some classes, (B, K', h, w) in [0, 1].

        Args:
            features: F, (B, C, h, w).
            labels: (B, K').
        """
        return of_classes(self.generator(features).sigmoid(), labels)

    def maps(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of the `top_k` classes' M, the same for every class, (B, K', h, w), for the step `HeadMaps`.

        Args:
            features: F, (B, C, h, w).
            labels: (B, K').
        """
        maps = self.generator(features).sigmoid()
        if self.top_k < self.classes:
            maps = of_classes(maps, self(features).topk(self.top_k)[1])
        return maps.mean(1, keepdim=True).expand(-1, labels.shape[1], -1, -1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), of F, (B, C, h, w)."""
        return self.class_maps(features).mean((2, 3))
