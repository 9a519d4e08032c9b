"""What commands show in their help before anything heavy is imported: the presets, and which is taken."""

from __future__ import annotations

DEFAULT_PRESET = "fast"
"""What `explain` takes where no pipeline is named: the best boxes on people's photos for the cost of one forward."""

DESCRIPTIONS = {
    "cam": "Plain CAM, kept above 20% of its maximum (Zhou et al., 2016).",
    "rcam": "Negative weights clamped, threshold from the 98th percentile (Bae et al., 2020).",
    "adaptive": "Absolute weights, threshold where the boundary's values jump (Zhang et al., 2022).",
    "cream": "Features, less their mean, clustered into object and surroundings (after Xu et al., 2022).",
    "rcam+crf": "Negative weights clamped, then drawn to the image's edges by a dense CRF.",
    "fast": "The map spread over what earlier stages see as alike; one forward.",
    "best": "Features times gradients of three stages, spread likewise; a forward and a backward.",
    "best+enlarge": "The same from an input 1.43 times as large; about four forwards' cost.",
}
"""Every preset in one line."""
