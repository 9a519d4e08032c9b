"""Affinity: the map spreads to where the network's earlier, finer stages see the same as under it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from camtools.checks import number, whole
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.minmax import MinMax


class Affinity(Step):
    """Replace every position's value by the mean of the whole map, weighted by how alike the positions look.

    Earlier stages of a network have finer grids, know edges and textures, and belong to no class. With g_i the unit
    feature vectors of `levels` such stages at position i, one after the other, the new map is

        M'_i = sum_j a_ij M_j / sum_j a_ij,    a_ij = max(cos(g_i, g_j), 0) ** power,

    on the finest of these stages' grids, which has to have at most `cells` positions, else the next coarser one, in the
    end that of F. The map comes in min-max normalised, interpolated bicubically and clamped to [0, 1]; what goes out
    lies in [0, 1], with less contrast. So a map with its peak on a head spreads over the body that looks like it, and
    what spilled over the edge falls to the ground's level. It costs no forward: the stages come with the one that made
    the map.

    In a network that has one grid from end to end (vision transformers, mixers) the outputs of blocks at 3/4, 1/2 and
    1/4 of the depth take the place of stages, class tokens left out: the map keeps its grid and spreads over tokens
    that are alike.

    Reads `State.pyramid`, `State.maps` (B, K', h, w) and the size of `State.features`; replaces `State.maps`, float32,
    (B, K', h', w'). Where `State.pyramid` is empty, as in a network of a single layer, maps pass unchanged. A constant
    map, or one with a NaN or an infinity in it or in its image's stages, becomes zeros. A position at which all
    features are zero is like no other and keeps its value.

    Source: the pixel correlation module of Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly
    Supervised Semantic Segmentation", CVPR 2020, section 3.3, which trains an embedding of the features for it and has
    no exponent; here features are taken as they are. Self-correlation of features as a post-processor without
    training is also in Pan et al., "Unveiling the Potential of Structure Preserving for WSOL", CVPR 2021.

    Args:
        levels: How many of the stages before F, from the coarsest on; at least 1.
        power: Sharpness of the affinities, above 0; the larger, the more the map keeps its form.
        cells: Most positions of the grid, at least 1; time and memory grow with its square.

    Raises:
        PipelineError: A parameter is out of range; or, when called, the state has no maps or no stages.
    """

    stage = Stage.REFINE
    resolution = "feature"

    def __init__(self, levels: int = 2, power: float = 3.0, cells: int = 1024) -> None:
        whole("levels", levels, owner="Affinity", error=PipelineError)
        whole("cells", cells, owner="Affinity", error=PipelineError)
        number("power", power, owner="Affinity", error=PipelineError)
        self.levels = self.needs_pyramid = levels
        self.power = power
        self.cells = cells

    def __call__(self, state: State) -> State:
        """Return the state with maps on the finer grid."""
        maps = state.require("maps", self).float()
        if state.pyramid is None:
            raise PipelineError(
                f"{self!r} needs a pyramid, but this state has none. Fill State.pyramid from camtools.wrap(model)"
                f".activations(x, pyramid={self.levels}).pyramid, or leave {type(self).__name__} out."
            )
        pyramid = state.pyramid[: self.levels]
        if not pyramid:
            return state
        self._check(maps, pyramid)
        fitting = [level.shape[2:] for level in pyramid if level.shape[2] * level.shape[3] <= self.cells]
        own = maps.shape[2:] if state.features is None else min(maps.shape[2:], state.features.shape[2:])
        grid = fitting[-1] if fitting else own
        units = torch.cat([_on_grid(level.float(), grid) for level in pyramid], 1).flatten(2)
        units = normalize(units, dim=1)  # the mean of the stages' cosines
        values = MinMax()(state.replace(maps=maps)).require("maps", self)
        sound = maps.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        values = torch.where(sound, values, 0.0)
        values = interpolate(values, size=grid, mode="bicubic", align_corners=False).clamp(0, 1)
        affinity = (units.mT @ units).clamp_(0, 1)  # (B, N, N)
        itself = torch.eye(affinity.shape[1], device=affinity.device)  # up to rounding it is 1, except of zeros
        affinity = torch.maximum(affinity, itself) ** self.power
        spread = values.flatten(2) @ affinity / affinity.sum(1, keepdim=True)
        spread = torch.where(spread.isfinite().all(-1, keepdim=True), spread, 0.0)
        return state.replace(maps=spread.unflatten(2, tuple(grid)))

    def _check(self, maps: Tensor, pyramid: tuple[Tensor, ...]) -> None:
        for level in pyramid:
            if level.dim() != 4 or level.shape[0] != maps.shape[0]:
                raise PipelineError(
                    f"{self!r}: a stage is {tuple(level.shape)} and maps {tuple(maps.shape)}: expected (B, C, h, w) of "
                    f"the same {len(maps)} images."
                )


def _on_grid(features: Tensor, grid: torch.Size) -> Tensor:
    """Return unit vectors on a grid: cells averaged where it is coarser, vectors interpolated where it is finer."""
    if features.shape[2:] == grid:
        return normalize(features, dim=1)
    if features.shape[2] >= grid[0] and features.shape[3] >= grid[1]:
        return normalize(interpolate(features, size=tuple(grid), mode="area"), dim=1)
    return interpolate(normalize(features, dim=1), size=tuple(grid), mode="bilinear", align_corners=False)
