"""The map decoder: one fine, class-agnostic map of the features of several stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from camtools.checks import whole
from camtools.errors import ModelError


class MapDecoder(nn.Module):
    """Go from F back to finer stages of the network, and say at each position whether the object is there.

    Each stage is brought to `width` channels by a 1 x 1 convolution; from F on, the sum of the coarser ones is
    interpolated, added, and mixed by a 3 x 3 convolution, all with batch normalisation and ReLU. The recipe `decoder`
    trains one on masks that a pipeline drew; the step `Decode` reads it.

    Source: the decoder of F-CAM (Belharbi et al., WACV 2022), as a feature pyramid (Lin et al., CVPR 2017).

    Args:
        channels: Of F and of each earlier stage, coarse to fine.
        width: Channels of the decoder's own layers.

    Raises:
        ModelError: A number is out of range, or there is no stage but F.
    """

    def __init__(self, channels: Sequence[int], width: int = 32) -> None:
        super().__init__()
        self.channels = tuple(whole("channels", count, error=ModelError) for count in channels)
        self.width = whole("width", width, error=ModelError)
        if len(self.channels) < 2:
            raise ModelError(
                f"channels={list(channels)}: expected those of F and of at least one finer stage, which the network "
                "lacks. Read its maps by a pipeline instead"
            )
        self.side = nn.ModuleList(_layer(count, width, 1) for count in self.channels)
        self.mix = nn.ModuleList(_layer(width, width, 3) for _ in self.channels[1:])
        self.score = nn.Conv2d(width, 1, 1)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        return {"channels": list(self.channels), "width": self.width}

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return logits on the finest stage's grid, (B, 1, h, w); their sigmoid is the map.

        Args:
            stages: F and earlier stages, coarse to fine, (B, C, h, w) each.

        Raises:
            ModelError: They have other channels.
        """
        found = tuple(stage.shape[1] for stage in stages)
        if found != self.channels:
            raise ModelError(
                f"the stages have {found} channels, expected {self.channels}: the decoder was trained on another "
                "network. Take that"
            )
        x: Tensor = self.side[0](stages[0])
        for stage, side, mix in zip(stages[1:], list(self.side)[1:], self.mix, strict=True):
            x = mix(side(stage) + interpolate(x, stage.shape[2:], mode="bilinear", align_corners=False))
        logits: Tensor = self.score(x)
        return logits


def _layer(channels: int, width: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
