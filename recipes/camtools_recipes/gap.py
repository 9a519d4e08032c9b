"""`gap`: plain fine-tuning, the baseline that the other recipes are held against."""

from __future__ import annotations

from camtools.training.recipe import Recipe


class GapRecipe(Recipe):
    """Plain fine-tune with global average pooling, read as CAM (Zhou et al., CVPR 2016)."""

    name = "gap"
