"""The paired bootstrap over images: how often each is drawn, and the intervals that follow."""

from __future__ import annotations

import numpy as np

from camtools.checks import whole
from camtools.evaluation.rows import Array


def image_weights(images: int, replicates: int, seed: int = 0) -> Array:
    """Return how often each image is drawn in each replicate, with replacement.

    Args:
        images: How many there are to draw from, and to draw.
        replicates: R; 0 for none.
        seed: The same seed gives the same draws.

    Returns:
        (R, images) uint8, each row with the sum `images`.

    Raises:
        InputError: `replicates` or `seed` is not a whole number of at least 0.
    """
    whole("bootstrap", replicates, 0)
    whole("seed", seed, 0)
    generator = np.random.default_rng(seed)
    weights = np.zeros((replicates, images), dtype=np.uint8)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return weights


def interval(differences: Array) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % percentile interval of a statistic's replicates (Efron 1979); None without any.

    Args:
        differences: (R,); NaN for replicates in which nothing counted, which are left out.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
