"""`wildcat`: several maps per class, pooled over the class, then over the highest and lowest positions."""

from __future__ import annotations

from dataclasses import dataclass

from camtools_recipes.multi_map import MultiMapConfig, MultiMapRecipe


@dataclass(frozen=True, kw_only=True)
class WildcatConfig(MultiMapConfig):
    """Settings of `wildcat`."""


class WildcatRecipe(MultiMapRecipe):
    """WILDCAT (Durand et al., CVPR 2017) with the settings of the ex-CAM thesis; single- and multi-label data."""

    name = "wildcat"
    Config = WildcatConfig
