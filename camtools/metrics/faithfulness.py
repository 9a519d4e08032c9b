"""Faithfulness: does the class's score follow what the map points at? Deletion, insertion, ROAD, average drop.

Unlike the other metrics these run the model, on images that are ready for it, and need no truth. They say how a map
fits the model, not how a box fits the object. A softmax over the logits gives the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from camtools.checks import number, one_of, whole
from camtools.errors import InputError
from camtools.metrics.arguments import Labels, class_labels, numbers

Classifier = Callable[[Tensor], Tensor]
"""From images (B, 3, H, W) to logits (B, K): a module in eval mode, or any function."""

Order = Literal["most", "least"]

NEIGHBOURS = {  # Rong et al. 2022, section 4: those beside a pixel weigh twice as much as those at its corners
    (dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx
}
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """How the class's score changes as pixels go or come.

    Attributes:
        fractions: Of the pixels that are changed, (n,) float32.
        scores: The class's probability at each, (B, n) float32.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> Tensor:
        """The mean score along the curve: its area by trapezes over its width, (B,)."""
        width = self.fractions[-1] - self.fractions[0]
        return torch.trapezoid(self.scores, self.fractions, dim=1) / width


def deletion(
    model: Classifier,
    images: Tensor,
    maps: Tensor,
    targets: Labels,
    *,
    steps: int = 20,
    baseline: Tensor | float = 0.0,
    batch_size: int = 64,
) -> FaithfulnessCurve:
    """Take pixels away in the order of the map, the highest first: the lower the area, the better the map.

    Source: Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4.

    Args:
        model: From images to logits: a module in eval mode, or any function.
        images: (B, 3, H, W) float, ready for the model.
        maps: (B, H, W) real, the higher the more important; equal values go in raster order.
        targets: B class indices.
        steps: Forwards beyond the first; each takes H * W / steps pixels.
        baseline: What takes the pixels' place: a number (0 is the mean, after the usual normalisation), or images.
        batch_size: Inputs per forward.

    Returns:
        steps + 1 fractions, from 0 to 1.

    Raises:
        InputError: Images, maps and targets do not match, or an argument is out of range.
    """
    images, ranks, labels = _checked(images, maps, targets)
    shares = torch.linspace(0, 1, whole("steps", steps, 1) + 1)
    gone = _as_images(baseline, images)
    inputs = (torch.where(_first(ranks, share), gone, images) for share in shares.tolist())
    return _curve(model, inputs, labels, shares, batch_size)


def insertion(
    model: Classifier,
    images: Tensor,
    maps: Tensor,
    targets: Labels,
    *,
    steps: int = 20,
    baseline: Tensor | float | None = None,
    batch_size: int = 64,
) -> FaithfulnessCurve:
    """Bring pixels back in the order of the map, the highest first: the higher the area, the better the map.

    Source: Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4.

    Args:
        model: From images to logits: a module in eval mode, or any function.
        images: (B, 3, H, W) float, ready for the model.
        maps: (B, H, W) real, the higher the more important; equal values come in raster order.
        targets: B class indices.
        steps: Forwards beyond the first; each brings H * W / steps pixels.
        baseline: What is there before: a number, images, or None for the images under a Gaussian blur of 11 pixels and
            sigma 5, as in the paper.
        batch_size: Inputs per forward.

    Returns:
        steps + 1 fractions, from 0 to 1.

    Raises:
        InputError: Images, maps and targets do not match, or an argument is out of range.
    """
    from torchvision.transforms.functional import gaussian_blur

    images, ranks, labels = _checked(images, maps, targets)
    shares = torch.linspace(0, 1, whole("steps", steps, 1) + 1)
    blurred = gaussian_blur(images, [11, 11], [5.0, 5.0]) if baseline is None else _as_images(baseline, images)
    inputs = (torch.where(_first(ranks, share), images, blurred) for share in shares.tolist())
    return _curve(model, inputs, labels, shares, batch_size)


def road(
    model: Classifier,
    images: Tensor,
    maps: Tensor,
    targets: Labels,
    *,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "most",
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
) -> FaithfulnessCurve:
    """Remove and debias: take pixels away, and fill the holes from their surroundings.

    A hole's pixels are the weighted means of their eight neighbours, by one sparse system per image, plus noise, so
    that the hole's shape itself tells the model nothing. With "most" the highest pixels go first (lower is better),
    with "least" the lowest (higher is better). On the CPU; large images take seconds each.

    Source: Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022, section 4.

    Args:
        model: From images to logits: a module in eval mode, or any function.
        images: (B, 3, H, W) float, ready for the model.
        maps: (B, H, W) real, the higher the more important; equal values go in raster order.
        targets: B class indices.
        fractions: Of the pixels to remove, ascending, each in (0, 1).
        order: "most" or "least" important first.
        noise: Standard deviation of what is added to filled pixels.
        seed: Of the noise.
        batch_size: Inputs per forward.

    Returns:
        The score at each of the fractions.

    Raises:
        InputError: Images, maps and targets do not match, or an argument is out of range.
    """
    images, ranks, labels = _checked(images, maps, targets)
    shares = [number("fractions", share, "(0, 1)") for share in fractions]
    if not shares or sorted(set(shares)) != shares:
        raise InputError(f"fractions={fractions!r}: expected shares of the pixels, ascending")
    if one_of("order", order, ("most", "least")) == "least":
        ranks = ranks.shape[1] * ranks.shape[2] - 1 - ranks
    spread = number("noise", noise, "[0, inf)")
    random = torch.Generator().manual_seed(whole("seed", seed, 0))

    def filled(share: float) -> Tensor:
        holes = _first(ranks, share)[:, 0].cpu()
        made = torch.stack([_fill(*pair) for pair in zip(images.float().cpu(), holes, strict=True)])
        made += spread * torch.randn(made.shape, generator=random) * holes[:, None]
        return made.to(images)

    return _curve(model, map(filled, shares), labels, torch.tensor(shares), batch_size)


def average_drop(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Return by how much the score falls where only what the map shows is left, a mean over images: lower is better.

    100 * mean_i max(0, Y_i - O_i) / Y_i, with Y the score of the image and O that of the image times its map.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.

    Args:
        scores: (B,) probabilities of the images.
        masked_scores: (B,) probabilities of the masked images, see `masked_scores`.

    Returns:
        Per cent, a scalar.

    Raises:
        InputError: The two do not match, or one is no probability; or a score is 0, of which no share can be taken.
    """
    whole_image, masked = _probabilities(scores, masked_scores)
    if bool((whole_image == 0).any()):
        raise InputError("scores: 0 for some image, which cannot drop: expected probabilities above 0")
    return 100 * ((whole_image - masked).clamp(min=0) / whole_image).mean()


def average_increase(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Return the share of images whose score rises where only what the map shows is left: higher is better.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018, section 4.1.

    Args:
        scores: (B,) probabilities of the images.
        masked_scores: (B,) probabilities of the masked images, see `masked_scores`.

    Returns:
        Per cent, a scalar.

    Raises:
        InputError: The two do not match, or one is no probability.
    """
    whole_image, masked = _probabilities(scores, masked_scores)
    return 100 * (whole_image < masked).double().mean()


def masked_scores(
    model: Classifier, images: Tensor, maps: Tensor, targets: Labels, *, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Return the classes' scores before and after the images are multiplied by their maps.

    Args:
        model: From images to logits: a module in eval mode, or any function.
        images: (B, 3, H, W) float, ready for the model.
        maps: (B, H, W) in [0, 1], `Explanation.map` of a ready tensor.
        targets: B class indices.
        batch_size: Inputs per forward.

    Returns:
        For `average_drop` and `average_increase`: (B,) and (B,) float32.

    Raises:
        InputError: Images, maps and targets do not match, or a map leaves [0, 1].
    """
    images, _, labels = _checked(images, maps, targets)
    weights = numbers("maps", maps, images.device).to(images.dtype)
    if float(weights.min()) < 0 or float(weights.max()) > 1:
        raise InputError(f"maps: from {float(weights.min()):g} to {float(weights.max()):g}, expected values in [0, 1]")
    found = _curve(model, iter((images, images * weights[:, None])), labels, torch.tensor([0.0, 1.0]), batch_size)
    return found.scores[:, 0], found.scores[:, 1]


def _checked(images: Any, maps: Any, targets: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, each pixel's place in the order of its map, (B, H, W) int64, and classes."""
    found = numbers("images", images)
    if found.ndim != 4 or not found.is_floating_point() or 0 in found.shape:
        raise InputError(
            f"images: {tuple(found.shape)} {found.dtype}, expected floats (B, 3, H, W), ready for the model"
        )
    values = numbers("maps", maps, found.device)
    if values.shape != (len(found), *found.shape[2:]) or not bool(values.isfinite().all()):
        raise InputError(
            f"maps: {tuple(values.shape)}, expected finite values {(len(found), *found.shape[2:])}, one map of the "
            "image's size for each. Explanation.map of a ready tensor is such"
        )
    order = values.double().flatten(1).argsort(dim=1, descending=True, stable=True)
    return (
        found,
        order.argsort(1).reshape(values.shape),
        class_labels("targets", targets, len(found), "images", found.device),
    )


def _first(ranks: Tensor, share: float) -> Tensor:
    """Return which pixels are among the first share of the order, (B, 1, H, W)."""
    return (ranks < round(share * ranks[0].numel()))[:, None]


def _as_images(baseline: Tensor | float, images: Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(images).expand_as(images)
        except RuntimeError as error:
            raise InputError(
                f"baseline: {tuple(baseline.shape)} does not fit images {tuple(images.shape)}: expected a number, or a "
                "tensor such as (3, 1, 1) that spreads over them"
            ) from error
    return torch.full_like(images, number("baseline", baseline, "(-inf, inf)"))


@torch.no_grad()
def _curve(
    model: Classifier, inputs: Iterable[Tensor], labels: Tensor, shares: Tensor, batch_size: int
) -> FaithfulnessCurve:
    """Score the class of every image in every version of the images."""
    if isinstance(model, nn.Module) and model.training:
        raise InputError("the model is in training mode, where scores depend on the batch: call model.eval() first")
    size = whole("batch_size", batch_size, 1)
    scores = torch.stack([_scores(model, version, labels, size) for version in inputs], 1)
    return FaithfulnessCurve(shares, scores)


def _scores(model: Classifier, images: Tensor, labels: Tensor, size: int) -> Tensor:
    found = [model(part) for part in images.split(size)]
    if not isinstance(found[0], Tensor) or found[0].ndim != 2:
        raise InputError(
            f"the model returned {type(found[0]).__name__}: expected logits, (B, K), of a function or module"
        )
    logits = torch.cat(found).float()
    if int(labels.max()) >= logits.shape[1]:
        raise InputError(f"targets: class {int(labels.max())}, but the model has {logits.shape[1]} classes")
    return logits.softmax(1).gather(1, labels[:, None])[:, 0].cpu()


def _probabilities(*given: Any) -> Iterator[Tensor]:
    found = [numbers("scores", scores).double() for scores in given]
    if any(scores.ndim != 1 or not len(scores) or scores.shape != found[0].shape for scores in found):
        shapes = " and ".join(str(tuple(scores.shape)) for scores in found)
        raise InputError(f"scores and masked_scores: {shapes}, expected one probability per image, (B,) each")
    if not all(bool(((scores >= 0) & (scores <= 1)).all()) for scores in found):
        raise InputError("scores and masked_scores: expected probabilities, in [0, 1]")
    return iter(found)


def _fill(image: Tensor, holes: Tensor) -> Tensor:
    """Replace pixels by the weighted means of their neighbours, those that are replaced themselves included.

    Args:
        image: (C, H, W) float32 on the CPU.
        holes: (H, W) bool, the pixels to fill.
    """
    height, width = holes.shape
    missing = holes.numpy()
    ys, xs = np.nonzero(missing)
    if not len(ys):
        return image
    number_of = np.full(missing.shape, -1)
    number_of[ys, xs] = np.arange(len(ys))
    known = np.zeros((len(ys), len(image)))
    total = np.zeros(len(ys))
    entries: list[tuple[Any, Any, Any]] = []
    for (dy, dx), weight in NEIGHBOURS.items():
        y, x = ys + dy, xs + dx
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        y, x = y[inside], x[inside]
        total[inside] += weight
        hole = missing[y, x]
        rows = inside[hole]
        entries.append((np.full(len(rows), -weight), rows, number_of[y[hole], x[hole]]))
        np.add.at(known, inside[~hole], weight * image.numpy()[:, y[~hole], x[~hole]].T)
    entries.append((total, np.arange(len(ys)), np.arange(len(ys))))
    values, rows, columns = (np.concatenate(part) for part in zip(*entries, strict=True))
    system = coo_matrix((values, (rows, columns)), shape=(len(ys), len(ys))).tocsc()
    solved = np.asarray(spsolve(system, known)).reshape(known.shape)
    result = image.clone()
    result[:, torch.from_numpy(ys), torch.from_numpy(xs)] = torch.from_numpy(solved.T).to(image.dtype)
    return result
