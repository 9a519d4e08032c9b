"""WILDCAT (Durand et al., CVPR 2017) and ex-CAM: several maps per class, pooled over the class, then over positions."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from camtools.checks import whole
from camtools.errors import ModelError
from camtools.heads.dropout import ADL, SequentialDropout, by_class
from camtools.heads.pooling import HeadLayer, positions


class WildcatPool(HeadLayer):
    """The mean of the k+ highest positions, plus alpha times the mean of the k- lowest (WILDCAT, eq. 4).

    How many positions: a `float` in (0, 1] is a share of them, rounded to the nearest number (halves up) and at least
    1; an `int` is their number, at most all. So 1.0 is every position and 1 is a single one. `k_min=0` leaves the
    lowest out.

    Args:
        k_max: k+, as above.
        k_min: k-, as above; None takes `k_max`.
        alpha: Weight of the lowest.
        halve: Halve the sum, as the authors' released code does.

    Raises:
        ModelError: A parameter is out of range.
    """

    def __init__(
        self, k_max: float | int = 0.2, k_min: float | int | None = None, alpha: float = 0.6, halve: bool = False
    ) -> None:
        super().__init__()
        self.k_max = _checked_k("k_max", k_max)
        self.k_min = self.k_max if k_min is None else _checked_k("k_min", k_min)
        if self.k_max == 0:
            raise ModelError("k_max is 0: expected a share in (0, 1] or a number of positions from 1. Leave out k_min "
                             "instead, with k_min=0")  # fmt: skip
        if not math.isfinite(alpha):
            raise ModelError(f"alpha is {alpha}: expected a finite number. The default is 0.6")
        self.alpha = float(alpha)
        self.halve = bool(halve)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool maps, (B, K, h, w), to scores, (B, K), in their own dtype; computed in float32 at least."""
        values = positions(maps)
        high, low = (_count(k, values.shape[2]) for k in (self.k_max, self.k_min))
        pooled = values.topk(high, dim=2, sorted=False).values.mean(2)
        if low and self.alpha:
            pooled = pooled + self.alpha * values.topk(low, dim=2, largest=False, sorted=False).values.mean(2)
        return (pooled / 2 if self.halve else pooled).to(maps.dtype)


class ClassWisePool(HeadLayer):
    """The mean of each class's M maps: (B, K·M, h, w) to (B, K, h, w) (WILDCAT, eq. 3).

    Args:
        M: Maps per class, side by side: channel k·M + j is map j of class k.

    Raises:
        ModelError: M is no whole number above 0.
    """

    def __init__(self, M: int) -> None:
        super().__init__()
        self.M = whole("M", M, error=ModelError)

    def forward(self, maps: Tensor) -> Tensor:
        """Average over each class's maps, (B, K·M, h, w) to (B, K, h, w).

        Raises:
            ModelError: The number of channels is no multiple of M.
        """
        return by_class(maps, self.M).mean(2)


class Wildcat(nn.Module):
    """A head that scores classes from M maps each: 1 x 1 convolution, class-wise mean, `WildcatPool`.

    The class maps are linear in F: W is the convolution's weight averaged over each class's maps, (K, C), so
    `camtools.wrap` sees an exact head.

    Args:
        channels: C of the features.
        classes: K.
        M: Maps per class (thesis: 8).
        k_max: Of `WildcatPool`.
        k_min: Likewise.
        alpha: Likewise.
        halve: Likewise.
        adl: A layer between the convolution and the class-wise mean: `ADL(per_map=True)` is the thesis's experiment
            3.8.3. It must pass maps unchanged in eval mode.

    Raises:
        ModelError: A parameter is out of range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        M: int = 8,
        *,
        k_max: float | int = 0.2,
        k_min: float | int | None = None,
        alpha: float = 0.6,
        halve: bool = False,
        adl: ADL | None = None,
    ) -> None:
        super().__init__()
        self.channels = whole("channels", channels, error=ModelError)
        self.classes = whole("classes", classes, error=ModelError)
        self.M = whole("M", M, error=ModelError)
        self.conv = nn.Conv2d(channels, classes * M, 1)
        self.dropout: nn.Module = adl or nn.Identity()
        self.class_pool = ClassWisePool(M)
        self.map_pool = WildcatPool(k_max, k_min, alpha, halve)

    @property
    def weight(self) -> Tensor:
        """W of the class maps, (K, C), on the graph of the convolution's weight."""
        return self.conv.weight.view(self.classes, self.M, self.channels).mean(1)

    @property
    def bias(self) -> Tensor:
        """The bias of the class maps, (K,)."""
        assert self.conv.bias is not None
        return self.conv.bias.view(self.classes, self.M).mean(1)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types; a dropout of somebody's own is left out."""
        own = {"channels": self.channels, "classes": self.classes, "M": self.M} | self.map_pool.arguments()
        return own | ({"adl": self.dropout.arguments()} if isinstance(self.dropout, ADL) else {})

    def maps(self, features: Tensor) -> Tensor:
        """Return all maps before any dropout, (B, K, M, h, w), from F, (B, C, h, w): for losses between them."""
        return by_class(self.conv(features), self.M)

    def logits_of(self, maps: Tensor) -> Tensor:
        """Return logits, (B, K), of the maps that `maps` gave: both from one convolution."""
        dropped: Tensor = self.dropout(maps.flatten(1, 2))
        logits: Tensor = self.map_pool(self.class_pool(dropped))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, (B, K), from F, (B, C, h, w)."""
        return self.logits_of(self.maps(features))


class ExCAM(Wildcat):
    """`Wildcat` with `SequentialDropout` over each class's maps in training (ex-CAM thesis, section 3.3).

    Args:
        channels: C of the features.
        classes: K.
        M: Maps per class.
        delta: Threshold of the dropout, on the sigmoid of the maps.
        learnable: Whether delta is learnt; see `SequentialDropout`.
        k_max: Of `WildcatPool`.
        k_min: Likewise.
        alpha: Likewise.
        halve: Likewise.

    Raises:
        ModelError: A parameter is out of range.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        M: int = 8,
        *,
        delta: float = 0.5,
        learnable: bool = False,
        k_max: float | int = 0.2,
        k_min: float | int | None = None,
        alpha: float = 0.6,
        halve: bool = False,
    ) -> None:
        super().__init__(channels, classes, M, k_max=k_max, k_min=k_min, alpha=alpha, halve=halve)
        self.dropout = SequentialDropout(M, delta, learnable)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make it again, as JSON's types."""
        drop: Any = self.dropout
        return super().arguments() | {"delta": drop.start, "learnable": drop.logit is not None}


def _checked_k(name: str, k: float | int) -> float | int:
    good = isinstance(k, int) and not isinstance(k, bool) and k >= 0
    if not good and not (isinstance(k, float) and 0 <= k <= 1):
        raise ModelError(
            f"{name} is {k!r}: expected a share of the positions (a float in (0, 1]) or their number (a whole number). "
            "1.0 is all of them, 1 a single one"
        )
    return k


def _count(k: float | int, total: int) -> int:
    if isinstance(k, float):
        return max(1, math.floor(k * total + 0.5)) if k else 0
    return min(k, total)
