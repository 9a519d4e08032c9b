"""Masks as COCO annotations: boxes and uncompressed run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from camtools.boxes import SPECK


def coco_annotations(mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return one annotation per connected part (8-neighbourhood), the one with the most pixels first.

    Parts with less than a hundredth of that one's pixels are left out, as in `Explanation.boxes`.

    Args:
        mask: (H, W) bool.

    Returns:
        "bbox" (x, y, width, height in pixels), "area" (pixels), "segmentation" (uncompressed run-length encoding:
        "size" (H, W) and "counts" in column-major order, starting with background) and "iscrowd" 0.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    slices = ndimage.find_objects(labels)
    found = []
    shown = [part for part in range(1, count + 1) if areas[part] >= SPECK * areas[1:].max()]
    for part in sorted(shown, key=lambda part: -areas[part]):
        rows, columns = slices[part - 1]
        found.append(
            {
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "area": int(areas[part]),
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(labels == part)},
                "iscrowd": 0,
            }
        )
    return found


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask (H, W): column-major, background first."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    borders = np.concatenate([[0], changes, [pixels.size]])
    lengths = np.diff(borders).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths
