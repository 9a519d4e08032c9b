"""The paired bootstrap over pictures: a replicate is how often each is drawn, the same for all pipelines."""

from __future__ import annotations

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.results import Array

_TAILS = (2.5, 97.5)


def picture_weights(pictures: int, replicates: int, seed: int = 0) -> Array:
    """Return how often each picture is drawn in each replicate, with replacement.

    Args:
        pictures: How many there are to draw from, and to draw.
        replicates: R; 0 for none.
        seed: The same seed gives the same draws.

    Returns:
        (R, pictures) uint8, each row with the sum `pictures`.

    Raises:
        InputError: `replicates` or `seed` is not a whole number of at least 0.
    """
    for name, value in (("bootstrap", replicates), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"{name}={value!r}: expected a whole number of at least 0")
    generator = np.random.default_rng(seed)
    weights = np.zeros((replicates, pictures), dtype=np.uint8)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, pictures, pictures), minlength=pictures)
    return weights


def interval(differences: Array) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % percentile interval of a statistic's replicates (Efron 1979); None without any.

    Args:
        differences: (R,); NaN for replicates in which nothing counted, which are left out.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, _TAILS)
    return float(low), float(high)
