"""Gradient: class maps from the features and the class's gradient at F and at the network's earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from camtools.checks import one_of, whole
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.minmax import MinMax


def product(features: Tensor, gradient: Tensor) -> Tensor:
    """Return sum_c relu(g_c A_c), rectified per channel: negative evidence does not cancel positive."""
    return (features * gradient).clamp_min(0).sum(1)


def hirescam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return relu(sum_c g_c A_c) (Draelos and Carin 2020, eq. 5)."""
    return (features * gradient).sum(1).clamp_min(0)


def layercam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return relu(sum_c relu(g_c) A_c) (Jiang et al. 2021, eq. 5-7)."""
    return (features * gradient.clamp_min(0)).sum(1).clamp_min(0)


def gradcam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return relu(sum_c mean(g_c) A_c) (Selvaraju et al. 2017, eq. 1-2)."""
    return (features * gradient.mean((2, 3), keepdim=True)).sum(1).clamp_min(0)


def gradcam_plus_plus(features: Tensor, gradient: Tensor) -> Tensor:
    """Return relu(sum_c w_c A_c), w_c = sum_ij alpha_cij relu(g_cij) (Chattopadhay et al. 2018, eq. 10, 12 and 19).

    With the score's exponential as the function of the class, alpha = g² / (2 g² + g³ sum A) = 1 / (2 + g sum A) where
    g is not 0.
    """
    below = 2 + gradient * features.sum((2, 3), keepdim=True)
    alpha = 1 / torch.where(below == 0, 1.0, below)
    weights = (alpha * gradient.clamp_min(0)).sum((2, 3), keepdim=True)
    return (features * weights).sum(1).clamp_min(0)


def bagcams(features: Tensor, gradient: Tensor) -> Tensor:
    """Return sum_c relu(g_c A_c mean(g_c A_c + 1)) (Zhu et al. 2022), without the guided backward of the authors' code.

    The factor is near 1 unless A is large and g is steep.
    """
    evidence = features * gradient
    return (evidence * (evidence + 1).mean((2, 3), keepdim=True)).clamp_min(0).sum(1)


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "product": product,
        "hirescam": hirescam,
        "layercam": layercam,
        "gradcam": gradcam,
        "gradcam++": gradcam_plus_plus,
        "bagcams": bagcams,
    }
)
"""From features A (B, C, h, w) and a class's gradient g there to a map (B, h, w), by name."""


class Gradient(Step):
    """Make the class maps from features A and the class's gradient g at F, at earlier and finer stages, or at several.

    | method | map |
    |---|---|
    | "product" | sum_c relu(g_c A_c) |
    | "hirescam" | relu(sum_c g_c A_c) |
    | "layercam" | relu(sum_c relu(g_c) A_c) |
    | "gradcam" | relu(sum_c mean(g_c) A_c) |
    | "gradcam++" | relu(sum_c w_c A_c), w_c the sum of relu(g_c) weighted by alpha_c |
    | "bagcams" | sum_c relu(g_c A_c mean(g_c A_c + 1)) |

    g is the gradient of the mean of M_k = sum_c W[k,c] F_c, which is the class's logit where the head pools by the mean
    or is linearised. Weights steps before this one have their part in it. At F the product is NWC's map (where
    features are not negative), Grad-CAM and HiResCAM are CAM with a ReLU. In class-token transformers it is the
    gradient of what reaches the score by F, the positions in the last attention, and not of what the token took up
    before.

    Of several stages the maps are min-max normalised, interpolated bicubically to the finest one's grid, clamped to
    [0, 1], and their geometric mean is taken: what is left is where each of them sees the class. The gradient at an
    earlier stage knows the object's extent but not only it, the map at F the class. A map without contrast has no say.

    One forward makes all stages, and each class costs one backward pass from F to the finest of them, for the whole
    batch at once. The layers before that stage are never back-propagated, parameters get no gradients, and frozen ones
    need none. Maps are float32, in half-precision models too.

    Reads `State.weights`, `State.features`, `State.pyramid` and `State.backward`; sets `State.maps`, (B, K', h, w) on
    the grid of the finest stage. Where the network has fewer stages, those that it has are used.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017; Chattopadhay et al., "Grad-CAM++", WACV 2018; Draelos and Carin,
    "Use HiResCAM instead of Grad-CAM", 2020; Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE TIP 2021; Zhu et al., "Bagging Regional Classification Activation Maps for WSOL", ECCV 2022.
    The product rectified per channel and the geometric mean are camtools' own.

    Args:
        method: A key of the table.
        levels: Which stages: 0 is F, 1 the coarsest stage before it, 2 the one before that. One, or several.

    Raises:
        PipelineError: A parameter is none of these; or, when called, the state has no features, weights or stages.
        ModelError: When called, F does not depend on a stage through autograd.
    """

    stage = Stage.MAP

    def __init__(self, method: str = "product", levels: int | Sequence[int] = (0, 1)) -> None:
        one_of("method", method, tuple(METHODS), owner="Gradient", error=PipelineError)
        several = isinstance(levels, Sequence) and not isinstance(levels, str)
        chosen: tuple[Any, ...] = tuple(levels) if isinstance(levels, Sequence) and several else (levels,)
        for level in chosen:
            whole("levels", level, 0, owner="Gradient", error=PipelineError)
        if not chosen or len(set(chosen)) < len(chosen):
            raise PipelineError(f"Gradient(levels={levels!r}): levels must be one or more different whole numbers.")
        self.method = method
        self.levels = chosen if several else levels
        self.needs_pyramid = self.needs_gradients = max(chosen)

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        features, weights = state.require("features", self).float(), state.require("weights", self).float()
        pyramid = self._pyramid(state)
        levels = self.levels if isinstance(self.levels, tuple) else (self.levels,)
        chosen = sorted({min(level, len(pyramid)) for level in levels})
        columns = []
        for weight in weights.unbind(1):
            gradients = state.backward.gradients(weight, chosen[-1]) if chosen[-1] and state.backward else ()
            own = weight if weight.dim() == 4 else weight[..., None, None]
            pairs = [(features, own.expand_as(features) / features[0, 0].numel())]
            pairs += [(a.float(), g) for a, g in zip(pyramid, gradients, strict=False)]
            columns.append([METHODS[self.method](*pairs[level]) for level in chosen])
        maps = [torch.stack(column, 1) for column in zip(*columns, strict=True)]
        return state.replace(maps=maps[0] if len(maps) == 1 else geometric_mean(maps))

    def _pyramid(self, state: State) -> tuple[Tensor, ...]:
        if self.needs_pyramid and (state.pyramid is None or state.backward is None):
            raise PipelineError(
                f"{self!r} needs earlier stages and gradients there, but this state has none. Fill State.pyramid and "
                f"State.backward from camtools.wrap(model).activations(x, pyramid={self.needs_pyramid}, "
                f"gradients={self.needs_pyramid})."
            )
        return state.pyramid or ()


def geometric_mean(maps: Sequence[Tensor]) -> Tensor:
    """Return the geometric mean of min-max normalised maps, on the finest grid.

    Args:
        maps: (B, K', h, w) each, of several grids. One without contrast or with a value that is not finite has no say.

    Returns:
        (B, K', h', w') float32 in [0, 1]; zeros where no map has a say.
    """
    grid = max((one.shape[2:] for one in maps), key=lambda shape: shape[0] * shape[1])
    logs = counts = maps[0].new_zeros((), dtype=torch.float32)
    for one in maps:
        normal = MinMax()(State(maps=one)).require("maps", "geometric_mean")
        telling = normal.amax((2, 3), keepdim=True) > 0
        fine = interpolate(normal, size=tuple(grid), mode="bicubic", align_corners=False).clamp(0, 1)
        logs = logs + torch.where(telling, fine.log(), 0.0)
        counts = counts + telling.float()
    return torch.where(counts > 0, (logs / counts.clamp_min(1)).exp(), 0.0)
