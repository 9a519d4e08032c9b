"""Random numbers that are the same on every machine, and the arithmetic that keeps them so.

Everything a scene is made of uses only +, -, *, /, square roots, comparisons and `floor`, element by element: IEEE 754
fixes their results to the last bit. Sines, matrix products and sums over an axis may differ between processors, and are
not used where they could reach a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Stream:
    """One scene's random numbers: NumPy's legacy generator, whose values NumPy promises never to change (NEP 19).

    Args:
        key: Whole numbers of at least 0 that name the stream; other keys give independent streams.
    """

    def __init__(self, *key: int) -> None:
        self._random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * float(self._random.random_sample())

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self._random.randint(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform(0, 1) < probability

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.integer(0, len(items) - 1)]

    def array(self, *shape: int) -> Floats:
        """Return numbers in [0, 1)."""
        return self._random.random_sample(shape)

    def direction(self) -> tuple[float, float]:
        """Return a unit vector from the rational points of the circle, which need no sine."""
        t = self.uniform(-1, 1)
        x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return (x, y) if self.chance(0.5) else (-x, -y)
