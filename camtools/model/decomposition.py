"""From features to logits: the exact form W · pool(F) + b, checked on the spot, or the head's own gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from camtools.errors import ModelError
from camtools.model.adapter import FeatureSpec
from camtools.model.layout import Layout

# Largest relative error at which W · pool(F) + b counts as the model's logits. Half precision rounds the model's own
# logits to 8 (bfloat16) or 11 (float16) significant bits, at every one of its layers after F.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}

# A share of the logit above which a map counts as the whole of it.
ALMOST_ALL = 0.95

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda f: f.mean((2, 3)),
    "max": lambda f: f.amax((2, 3)),
    "avgmax": lambda f: (f.mean((2, 3)) + f.amax((2, 3))) / 2,
}


@dataclass(frozen=True)
class Decomposition:
    """How a model's logits come from its last features.

    Attributes:
        exact: Whether the logits are W · pool(F) + b with the classifier's own W and b, or map_pool(W · F + b) where
            the head pools maps, checked on a real forward.
        residual: Largest error of that form over the largest logit; None where no linear head was claimed.
        layer: Dotted name of the layer whose tensor F is.
        side: Whether F is that layer's "input" or "output".
        layout: The layout F has in the model; camtools hands it out as NCHW.
        head: In words, what lies between F and the logits.
        adapter: Name of the adapter that knew the model.
        channels: C, number of feature channels.
        grid: (h, w), rows and columns of F.
        share: How much of each class's logit goes by way of F's positions, and so is in its map, in [0, 1], one per
            class; found on the first input. Without constants such as biases. A class token that reaches the classifier
            beside the positions takes the rest. None where it cannot be found out.
    """

    exact: bool
    residual: float | None
    layer: str
    side: str
    layout: Layout
    head: str
    adapter: str
    channels: int
    grid: tuple[int, int]
    share: tuple[float, ...] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "linearised"
        residual = "" if self.residual is None else f", residual={self.residual:.1e}"
        place = f"{self.side} of {self.layer!r}" if self.layer else f"{self.side} of the model"
        if self.share is not None and min(self.share) < ALMOST_ALL:
            low, high = (f"{limit:.0%}" for limit in (min(self.share), max(self.share)))
            residual += f", maps hold {low if low == high else f'{low} to {high}'} of the logits"
        return (
            f"Decomposition({kind}{residual}, layer={place}, layout={self.layout}, "
            f"features={self.channels} x {self.grid[0]} x {self.grid[1]}, head={self.head!r}, adapter={self.adapter!r})"
        )


def class_maps(features: Tensor, weights: Tensor) -> Tensor:
    """Return M_k = sum_c W[k, c] F_c, signed and without bias, (B, K', h, w) in the features' dtype.

    The weights are never copied out over the batch, so 1,000 classes of 32 images cost one matrix product.

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.

    Args:
        features: F, (B, C, h, w).
        weights: (B or 1, K', C), or (B or 1, K', C, h, w) where they vary over positions.
    """
    weights = weights.to(features.dtype)
    if torch.compiler.is_compiling() and weights.dim() == 3 and isinstance(weights.shape[0], int):  # no symbol, so 1
        return torch.nn.functional.conv2d(features, weights[0, :, :, None, None])
    if weights.dim() == 3:
        return torch.matmul(weights, features.flatten(2)).unflatten(2, features.shape[2:])
    return torch.einsum("bkchw,bchw->bkhw", weights, features)


@dataclass(frozen=True)
class LinearHead:
    """Pooling and a linear classifier: logits = weight · pool(F) + bias, or pool(weight · F + bias).

    Attributes:
        weight: (K, C), the classifier's own parameter (a view of it for 1 x 1 convolutions).
        bias: (K,) or None.
        pool: Name of the pooling: a key of `POOLS`, or what `name_of` calls it.
        residual: Relative error it was found to have.
        pools_maps: Whether the pooling comes after the classifier.
    """

    weight: Tensor
    bias: Tensor | None
    pool: str
    residual: float
    pools_maps: bool = False

    def is_exact(self, *dtypes: torch.dtype) -> bool:
        """Tell whether the residual is within what the coarsest of the given dtypes can show."""
        return self.residual <= max(TOLERANCE.get(dtype, 1e-4) for dtype in dtypes)


def linear_head(model: nn.Module, spec: FeatureSpec, features: Tensor, logits: Tensor) -> LinearHead | None:
    """Build the linear head a spec claims and measure how well it gives the model's logits.

    Args:
        model: The module that `spec.classifier` is a part of.
        spec: The claim.
        features: F, (B, C, h, w).
        logits: What the model returned for the same forward, (B, K).

    Returns:
        The head with the smallest residual among the poolings the spec allows, or None where nothing linear was
        claimed or its shape rules it out. The caller compares `residual` with the tolerance.
    """
    claim = classifier_weights(model, spec, features)
    if claim is None or claim[0].shape != (logits.shape[1], features.shape[1]):
        return None
    weight, bias = claim
    with torch.no_grad():
        if spec.map_pool is not None:
            maps = torch.einsum("kc,bchw->bkhw", weight.float(), features.float())
            rebuilt = spec.map_pool(maps if bias is None else maps + bias.float()[:, None, None])
            return LinearHead(weight, bias, name_of(spec.map_pool), _residual(rebuilt, logits), pools_maps=True)
        residuals = {
            name: _residual(_linear(weight, bias, pool(features.float())), logits)
            for name, pool in _poolings(spec).items()
        }
    best = min(residuals, key=lambda pool: residuals[pool])
    return LinearHead(weight, bias, best, residuals[best])


def name_of(pool: Callable[[Tensor], Tensor]) -> str:
    """Return what a pooling is called in words: a module's repr where it is one line, a function's name."""
    if isinstance(pool, nn.Module):
        return repr(pool) if "\n" not in repr(pool) else type(pool).__name__
    return str(getattr(pool, "__name__", type(pool).__name__))


def shares(logits: Tensor, without: Tensor, other: Tensor, bias: Tensor | None) -> tuple[float, ...]:
    """Return how much of each class's logit goes by way of F's positions, (K,) in [0, 1].

    What is left of the logits when the positions are zeros is a constant where they all pass through F, whatever the
    head makes of it. Where it changes with the image, there is another way, whose part is what is left less the
    classifier's bias.

    Args:
        logits: Of one image, (K,).
        without: Of the same image with zeros for F, (K,).
        other: Of another image with zeros for F, (K,).
        bias: The classifier's, (K,); None where there is none.
    """
    logits, without, other = (values.detach().float() for values in (logits, without, other))
    through = logits - without
    beside = without if bias is None else without - bias.detach().float().to(without.device)
    if float((without - other).abs().max()) <= 1e-6 * float(without.abs().max()):
        return (1.0,) * len(logits)
    return tuple((through.abs() / (through.abs() + beside.abs()).clamp_min(1e-12)).tolist())


def head_gradient(features: Tensor, logits: Tensor, targets: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return d logit / d F through the head only; the backbone is not back-propagated.

    Args:
        features: The captured tensor, in whatever layout, on the graph of `logits`, (B, ...).
        logits: (B, K).
        targets: Class indices, (B, K').
        create_graph: Whether the result must itself be differentiable.

    Returns:
        Gradients in the layout of `features`, (B, K', ...), not scaled by the number of positions.

    Raises:
        ModelError: The logits do not depend on the features through autograd.
    """
    columns = []
    for column in targets.unbind(1):
        one_hot = torch.zeros_like(logits).scatter_(1, column[:, None], 1)
        gradient: Tensor | None = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits, features, one_hot, True, create_graph, allow_unused=True)
        if gradient is None:
            raise ModelError(
                "the logits do not depend on the features through autograd, so the head has no gradient. "
                "A head that runs under torch.no_grad() or detaches its input cannot be linearised: remove that, or "
                "register an adapter that names a feature layer after it"
            )
        columns.append(gradient)
    return torch.stack(columns, dim=1)


def classifier_weights(model: nn.Module, spec: FeatureSpec, features: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Return the weight (K, C) and bias (K,) of the classifier a spec names, as the parameters themselves.

    Args:
        model: The module that `spec.classifier` is a part of.
        spec: The claim. Where F already is one map per class the weights are the identity.
        features: F, (B, C, h, w); its channels, dtype and device serve for the identity.
    """
    if spec.pool == "identity":
        return torch.eye(features.shape[1], dtype=features.dtype, device=features.device), None
    if spec.classifier is None:
        return None
    module = model.get_submodule(spec.classifier)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        return None
    return weight.flatten(1), bias if isinstance(bias, Tensor) else None


def _poolings(spec: FeatureSpec) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the poolings that a spec allows, by name."""
    if spec.pool is None:
        return POOLS
    if isinstance(spec.pool, str):
        name = "avg" if spec.pool == "identity" else spec.pool
        return {name: POOLS[name]}
    return {name_of(spec.pool): spec.pool}


def _linear(weight: Tensor, bias: Tensor | None, pooled: Tensor) -> Tensor:
    """Return W p + b in float32."""
    rebuilt = pooled.float() @ weight.float().T
    return rebuilt if bias is None else rebuilt + bias.float()


def _residual(rebuilt: Tensor, logits: Tensor) -> float:
    """Largest |rebuilt - logits| over the largest |logit|, in float32; infinite where it is not a number."""
    if rebuilt.shape != logits.shape:
        return float("inf")
    error = (rebuilt.float() - logits.float()).abs().max() / logits.float().abs().max().clamp_min(1e-12)
    return float(error) if bool(torch.isfinite(error)) else float("inf")
