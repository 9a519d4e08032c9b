"""DDT: what the images of one class have in common, the first principal component of their features."""

from __future__ import annotations

import torch
from torch import Tensor

from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step, check_tensors
from camtools.steps.cam import CAM


class DDT(Step):
    """Make each class's map by the first principal component of the features of its images: (F - mean_k) · v_k.

    Positions above 0 belong to what the images share, those below to the rest; no label but the class's, and no
    classifier, has a part in it. `principal_direction` gives mean and v of a class's images. `MaxNorm` after it keeps
    0 where it is, and `FixedThreshold(0)` draws the paper's mask.

    Reads `State.features`, (B, C, h, w), and `State.labels`, (B, K'); sets `State.maps`, (B, K', h, w), float32.
    Without vectors the maps are a plain CAM's.

    Source: Wei et al., "Unsupervised Object Discovery and Co-Localization by Deep Descriptor Transforming", Pattern
    Recognition 2019, eq. 2-4; per class in PSOL (Zhang, Cao and Wu, CVPR 2020).

    Args:
        mean: The mean feature of each class, (K, C), or None.
        vectors: v of each class, (K, C), zeros for a class without images.

    Raises:
        PipelineError: Shapes that do not fit; or, when called, the state has no features or labels, or those of
            another model.
    """

    stage = Stage.MAP

    def __init__(self, mean: Tensor | None = None, vectors: Tensor | None = None) -> None:
        check_tensors("DDT", mean=mean, vectors=vectors)
        shapes = [None if value is None else tuple(value.shape) for value in (mean, vectors)]
        if shapes[0] != shapes[1] or (mean is not None and mean.dim() != 2):
            raise PipelineError(f"DDT: mean is {shapes[0]} and vectors {shapes[1]}, expected (K, C) both, or None.")
        self.mean, self.vectors = mean, vectors

    def __call__(self, state: State) -> State:
        """Return the state with `maps` (B, K', h, w)."""
        if self.mean is None or self.vectors is None:
            return CAM()(state)
        features, labels = state.require("features", self).float(), state.require("labels", self)
        if features.shape[1] != self.mean.shape[1] or int(labels.max()) >= len(self.mean):
            raise PipelineError(
                f"{self!r} does not fit features of {features.shape[1]} channels and classes up to {int(labels.max())}."
                " Fit the vectors to this model."
            )
        index = labels.to(self.mean.device)
        vectors = self.vectors[index].to(features)  # (B, K', C)
        offset = (self.mean[index].to(features) * vectors).sum(2)[..., None, None]
        return state.replace(maps=torch.einsum("bkc,bchw->bkhw", vectors, features) - offset)

    def __repr__(self) -> str:
        return "DDT()" if self.mean is None else f"DDT(mean={tuple(self.mean.shape)})"


def principal_direction(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean feature and the first principal component of a set of images, (C,) each, float32.

    A component has no sign of its own: here the grids' middle is above their border on average, as objects are.

    Args:
        features: Of images of one class, (N, C, h, w).
    """
    images = features.double()
    mean = images.mean((0, 2, 3))
    centred = images - mean[:, None, None]
    flat = centred.permute(1, 0, 2, 3).flatten(1)
    vector = torch.linalg.eigh(flat @ flat.T)[1][:, -1]
    heat = torch.einsum("c,nchw->hw", vector, centred)
    border = torch.ones_like(heat, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    if border.all() or float(heat[~border].mean()) >= float(heat[border].mean()):
        return mean.float(), vector.float()
    return mean.float(), -vector.float()
