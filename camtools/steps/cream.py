"""CREAM (Xu): is a position more like the object or like what is around it? `UnitFeatures` prepares features for it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from camtools.checks import flag, number, whole
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.minmax import MinMax

_STEEPEST = 1e30  # far beyond where the posterior is 0 or 1, and far below where float32 ends


@runtime_checkable
class Bank(Protocol):
    """Where clusters start: vectors of every class, as a `camtools.ContextBank` has them."""

    @property
    def foreground(self) -> Tensor:
        """V_fg, (K, C)."""

    def vectors(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V_fg and V_bg, (B, K', C), of classes (B, K'), and which have both, (B, K') bool."""


class CREAM(Step):
    """Re-activate each class map by soft clustering of the features into foreground and background.

    Two cluster centres per image and class, V_fg and V_bg, are the bank's for this class, or else the mean features
    of the image's own CAM foreground (M > delta · max M) and of the rest. E-step (eq. 8):
    z_fg = a_fg p_fg / (a_fg p_fg + a_bg p_bg) with p = exp(sigma · cos(F, V)), computed as the sigmoid of a difference
    of logarithms, so that nothing overflows. M-step (eq. 9): V is the mean of the features weighted by z, a the mean of
    z; a = 1/2 at the start. `iterations` E-steps have `iterations - 1` M-steps in between.

    Calibration (eq. 10-11) takes z_fg or z_bg = 1 - z_fg, whichever has the larger mean over the CAM foreground; of
    equals z_fg. The result (eq. 12) is that map plus the min-max normalised CAM, float32 within [0, 2] ([0, 1] without
    `add_cam`); a later step normalises. As M-step the paper's weighted mean is kept. It is not the maximiser of the
    expected cosine likelihood, which would be the weighted mean of F / |F|, so the likelihood need not rise.

    Degenerate cases: a map that is nowhere positive has no foreground, and a constant positive one no background.
    Where a centre is missing and there is no bank vector for the class either, the result is the normalised CAM alone
    (zeros for a constant one), whatever the switches. With bank vectors, but no CAM foreground or no CAM background to
    calibrate by, z_fg is taken. A feature vector or centre of zeros has cosine 0 to everything; features that are all
    zero give z = 1/2 everywhere. Maps or features with a NaN or an infinity give zeros.

    Reads `State.features` (B, C, h, w), `State.maps` (B, K', h, w), signed, and with a bank `State.labels` (B, K');
    replaces `State.maps`.

    Source: Xu et al., "CREAM: Weakly Supervised Object Localization via Class RE-Activation Mapping", CVPR 2022,
    section 3.2, eq. 5-12; the two switches are rows of its Table 5.

    Args:
        bank: Where the clusters start. With None, and for classes that it lacks, they start from the image's own means.
        iterations: E-steps, at least 1. The paper finds 2 best and maps too smooth beyond.
        sigma: Steepness, above 0.
        delta: Share of its maximum above which the CAM counts as foreground, in [0, 1).
        calibrate: Whether to choose between z_fg and z_bg; False takes z_fg.
        add_cam: Whether to add the normalised CAM.
        centre: Whether features and vectors are taken relative to the image's mean feature. Not in the paper.
            Features behind a ReLU share a large common part, so that their cosines to either centre are nearly the
            same; relative to their mean the two centres lie opposite each other.

    Raises:
        PipelineError: A parameter is out of range; or, when called, the state lacks features, maps or labels, their
            shapes do not fit each other, or the bank does not fit the features or labels.
    """

    stage = Stage.REFINE
    resolution = "feature"

    def __init__(
        self,
        bank: Bank | None = None,
        iterations: int = 2,
        sigma: float = 8.0,
        delta: float = 0.2,
        calibrate: bool = True,
        add_cam: bool = True,
        centre: bool = False,
    ) -> None:
        if bank is not None and not isinstance(bank, Bank):
            raise PipelineError(f"CREAM(bank={bank!r}): bank must be a ContextBank or None. See ContextBank.load.")
        whole("iterations", iterations, owner="CREAM", error=PipelineError)
        number("sigma", sigma, owner="CREAM", error=PipelineError)
        number("delta", delta, "[0, 1)", owner="CREAM", error=PipelineError)
        for name, value in (("calibrate", calibrate), ("add_cam", add_cam), ("centre", centre)):
            flag(name, value, owner="CREAM", error=PipelineError)
        self.bank = bank
        self.iterations = iterations
        self.sigma = sigma
        self.delta = delta
        self.calibrate = calibrate
        self.add_cam = add_cam
        self.centre = centre

    def __call__(self, state: State) -> State:
        """Return the state with re-activated maps."""
        features, maps = state.require("features", self).float(), state.require("maps", self).float()
        self._check(features, maps)
        mask = foreground_mask(maps, self.delta)
        mean = None
        if self.centre:
            mean = features.mean((2, 3))  # (B, C)
            features = _relative(features, mean[..., None, None])
        foreground, background, ready = self._centres(state, features, mask, mean)
        logit = self._posterior(features.flatten(2), foreground, background).unflatten(-1, maps.shape[-2:])
        result = logit.sigmoid()
        if self.calibrate:
            other, inside = (-logit).sigmoid(), mask.flatten(2)  # z_bg, as exact near 0 as z_fg
            telling = inside.any(-1) & ~inside.all(-1)  # a mask of everything would tell which cluster is larger
            swap = telling[..., None, None] & ((mask * (other - result)).sum((-2, -1), keepdim=True) > 0)
            result = torch.where(swap, other, result)
        cam = MinMax()(state.replace(maps=maps)).require("maps", self)
        result = torch.where(ready[..., None, None], result + cam if self.add_cam else result, cam)
        sound = (result.isfinite() & maps.isfinite()).all(-1, keepdim=True).all(-2, keepdim=True)
        return state.replace(maps=torch.where(sound, result, 0.0))

    def _centres(
        self, state: State, features: Tensor, mask: Tensor, mean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the clusters start, (B, K', C) each, and whether there are both, (B, K').

        `mean`, (B, C), was taken from the features already.
        """
        means, present = mean_features(features, torch.cat([mask, ~mask], dim=1))
        foreground, background = means.chunk(2, dim=1)
        ready = present.unflatten(1, (2, -1)).all(1)
        if self.bank is None:
            return foreground, background, ready
        channels = self.bank.foreground.shape[1]
        if channels != features.shape[1]:
            raise PipelineError(
                f"{self.bank!r} does not fit features of {features.shape[1]} channels: expected {channels}. Use a bank "
                "fitted to this model: ContextBank.fit(model, dataset)."
            )
        labels = state.require("labels", self)
        if labels.shape != mask.shape[:2]:
            raise PipelineError(
                f"{self!r}: labels are {tuple(labels.shape)}, but maps {tuple(mask.shape)}: expected "
                f"{tuple(mask.shape[:2])}, the class of every map."
            )
        of_class = [part.to(features.device) for part in self.bank.vectors(labels)]
        known = of_class[2][..., None]
        foreground, background = (
            torch.where(known, of_bank.float() if mean is None else of_bank.float() - mean[:, None], of_image)
            for of_bank, of_image in zip(of_class[:2], (foreground, background), strict=True)
        )
        return foreground, background, ready | known[..., 0]

    def _posterior(self, features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Alternate E- and M-steps; return log z_fg - log z_bg, (B, K', N), for features (B, C, N)."""
        sigma, classes = min(self.sigma, _STEEPEST), foreground.shape[1]
        ones = features.new_ones(1, 1, features.shape[1]).expand(len(features), -1, -1)
        lengths = _or_one((ones @ features.square()).sqrt())  # 4 times as fast as norm(dim=1) on a CPU
        prior: Tensor | float = 0.0  # log a_fg - log a_bg
        logit = features.new_zeros(())
        for step in range(self.iterations):
            if step:
                logs = torch.cat([logsigmoid(logit), logsigmoid(-logit)], dim=1)  # log z_fg, log z_bg
                # softmax of log z is z / sum z, and logsumexp is log sum z, where z itself would have become 0
                foreground, background = (logs.softmax(-1) @ features.mT).split(classes, dim=1)
                sums = logs.logsumexp(-1, keepdim=True)
                prior = sums[:, :classes] - sums[:, classes:]
            logit = sigma * ((_unit(foreground) - _unit(background)) @ features / lengths) + prior
        return logit

    def _check(self, features: Tensor, maps: Tensor) -> None:
        batch, grid = (len(features), features.shape[2:]), (len(maps), maps.shape[2:])
        if features.dim() != 4 or maps.dim() != 4 or batch != grid:
            raise PipelineError(
                f"{self!r}: features are {tuple(features.shape)} and maps {tuple(maps.shape)}: expected (B, C, h, w) "
                "and (B, K', h, w) of the same images and grid."
            )


class UnitFeatures(Step):
    """Scale the feature of every position to length 1, for the steps after it: F <- F / |F|; zeros stay.

    Before `CREAM`, and with a bank of such features, the clusters' means are mean directions. Positions are compared to
    them by cosine, and a plain mean (eq. 4 and 9) of vectors of very different length has the direction of the longest
    few. The mean direction is what maximises the expected cosine likelihood.

    Maps made before stay as they are. Reads and replaces `State.features`, (B, C, h, w).

    Raises:
        PipelineError: When called on a state without features.
    """

    stage = Stage.REFINE
    resolution = "feature"

    def __call__(self, state: State) -> State:
        """Return the state with features of length 1."""
        features = state.require("features", self).float()
        return state.replace(features=features / _or_one(features.norm(dim=1, keepdim=True)))


def foreground_mask(maps: Tensor, delta: float) -> Tensor:
    """Return where maps are above `delta` of their maximum (CREAM, eq. 3).

    Args:
        maps: Signed class maps, (B, K', h, w).
        delta: In [0, 1).

    Returns:
        (B, K', h, w) bool; all False for a map that is nowhere positive, or not finite.
    """
    top = maps.amax((-2, -1), keepdim=True)
    sound = (top > 0) & maps.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return (maps > delta * top) & sound


def mean_features(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Average features over masks (CREAM, eq. 4).

    Args:
        features: (B, C, h, w).
        mask: (B, K', h, w) bool.

    Returns:
        The means, (B, K', C), zeros where a mask is empty; and whether it is not, (B, K') bool.
    """
    flat = mask.flatten(2).to(features.dtype)
    count = flat.sum(-1, keepdim=True)
    return flat @ features.flatten(2).mT / count.clamp_min(1), count[..., 0] > 0


def _relative(features: Tensor, mean: Tensor) -> Tensor:
    """Take a mean, (B, C, 1, 1), from features; what is left by rounding alone becomes 0."""
    left = features - mean
    noise = 1e-6 * mean.norm(dim=1, keepdim=True)
    return torch.where(left.norm(dim=1, keepdim=True) > noise, left, 0.0)


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors, (..., C), to length 1; zeros stay."""
    return vectors / _or_one(vectors.norm(dim=-1, keepdim=True))


def _or_one(lengths: Tensor) -> Tensor:
    """Return lengths to divide by: 1 in place of 0."""
    return torch.where(lengths > 0, lengths, 1.0)
