"""PxAP and Peak IoU once more, in plain NumPy, map by map and threshold by threshold: slow, for tests only."""

import numpy as np

THRESHOLDS = np.arange(0, 1, 0.001)


def normalised(score_map):
    """The reference's normalisation, in NumPy."""
    values = np.asarray(score_map, dtype=np.float64)
    if np.isnan(values).any() or values.min() == values.max():
        return np.zeros_like(values)
    values = values - values.min()
    return values / values.max()


def reference_pxap(maps, masks, ignore):
    """The protocol with NumPy's histograms: bins [0, .001) ... [.999, 1), [1, 2), [2, 3]."""
    edges = np.append(THRESHOLDS, [1.0, 2.0, 3.0])
    on, off = np.zeros(1002), np.zeros(1002)
    for score_map, mask, left_out in zip(maps, masks, ignore, strict=True):
        scores, mask = normalised(score_map), np.asarray(mask)
        on += np.histogram(scores[mask], bins=edges)[0]
        off += np.histogram(scores[~mask & ~np.asarray(left_out)], bins=edges)[0]
    kept_on, kept_off = on[::-1].cumsum(), off[::-1].cumsum()
    with np.errstate(invalid="ignore"):
        precision = kept_on / (kept_on + kept_off)
    steps = np.diff(kept_on / on.sum())
    return 100 * (precision[1:] * steps)[(kept_on + kept_off)[1:] > 0].sum()


def reference_ious(maps, masks, ignore):
    """Mean IoU at each of the 1,000 thresholds, one by one."""
    per_image = []
    for score_map, mask, left_out in zip(maps, masks, ignore, strict=True):
        levels = (normalised(score_map) * 255).astype(np.uint8)
        mask = np.asarray(mask)
        counted = mask | ~np.asarray(left_out)
        kept = [(levels > int(tau * levels.max())) & counted for tau in THRESHOLDS]
        per_image.append([(k & mask).sum() / (k | mask).sum() for k in kept])
    return np.mean(per_image, axis=0)
