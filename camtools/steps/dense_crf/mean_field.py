"""Mean-field inference in a fully connected CRF, exact and batched, on whatever device the tensors are."""

from __future__ import annotations

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from camtools.checks import whole
from camtools.errors import PipelineError
from camtools.steps.dense_crf.filters import FeatureFilter, SpatialFilter

SENDERS = {"cuda": 512 * 512}
"""Pixels up to which `scale=None` keeps every one as a sender, by device type."""

SENDERS_ELSEWHERE = 56 * 56
"""The same for other devices, where exact inference takes seconds: a quarter of 224 x 224 each way."""

Gaussian = tuple[float, float]
Bilateral = tuple[float, float, float]


def mean_field(
    unary: Tensor,
    images: Tensor,
    *,
    gaussian: Gaussian | None = (3, 3),
    bilateral: Bilateral | None = (80, 13, 10),
    iterations: int = 10,
    scale: float | None = 1.0,
) -> Tensor:
    """Return the mean-field posterior of L classes per pixel in a fully connected CRF with a Potts model.

    Every iteration is Q <- softmax(-unary + c_g G Q + c_b B Q), starting at softmax(-unary), with G the smoothness
    kernel exp(-|pi - pj|^2 / (2 sxy^2)), B the appearance kernel exp(-|pi - pj|^2 / (2 sxy^2) - |Ii - Ij|^2 / (2
    srgb^2)) and c their compatibilities. As in pydensecrf, whose result this is but for the lattice's approximation,
    a pixel is among its own neighbours and each kernel is normalised symmetrically, k_ij / sqrt(n_i n_j) with n_i =
    sum_j k_ij. The sums run over all pixels, through attention: time grows with (H W)^2, memory with H W.

    Below `scale` 1 the iterations run at the reduced size, on unaries averaged over each cell and the colour of the
    pixel in its middle (averaged colours lose their spread, and with it the masks), with positions still in the full
    image's pixels. The last iteration is joint: every pixel of the full size, with its own colour, position and unary,
    gathers from the reduced pixels, so that edges come back at full resolution.

    Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS
    2011, algorithm 1; parameters as of pydensecrf's `addPairwiseGaussian` and `addPairwiseBilateral`.

    Args:
        unary: Negative log-probabilities, up to a constant per pixel, (B, L, H, W), finite. Computed in its own dtype
            where it is float64, else in float32.
        images: (B, 3, H, W) float, RGB in [0, 1].
        gaussian: (sxy in pixels, compatibility) of the smoothness kernel; None leaves it out.
        bilateral: (sxy in pixels, srgb in levels of 0 to 255, compatibility) of the appearance kernel; None leaves it
            out.
        iterations: At least 1.
        scale: The reduced size as a share of height and width, above 0 up to 1; 1 is exact. None: 1 up to 512 x 512
            pixels on CUDA, else what leaves as many; on other devices what leaves 56 x 56.

    Returns:
        Probabilities (B, L, H, W), without gradient.

    Raises:
        PipelineError: A tensor or a parameter is not as described.

    Example:
        >>> labels = mean_field(-scores.log_softmax(1), images).argmax(1)
    """
    check_parameters("mean_field", gaussian, bilateral, iterations, scale)
    if unary.ndim != 4 or not unary.is_floating_point() or 0 in unary.shape:
        raise PipelineError(
            f"mean_field got a unary of shape {tuple(unary.shape)} and dtype {unary.dtype}; expected floats "
            "(B, L, H, W): negative log-probabilities, such as -scores.log_softmax(1)."
        )
    if not unary.isfinite().all():
        raise PipelineError("mean_field got a unary that is not finite everywhere; clamp the probabilities first.")
    images = check_images("mean_field", images, unary)
    return infer(unary[:, None], images, gaussian, bilateral, iterations, scale)[:, 0]


@torch.no_grad()
def infer(
    unary: Tensor,
    images: Tensor,
    gaussian: Gaussian | None,
    bilateral: Bilateral | None,
    iterations: int,
    scale: float | None,
) -> Tensor:
    """Solve G problems of L classes per image that share its kernels; see `mean_field`. Nothing is checked.

    Args:
        unary: (B, G, L, H, W).
        images: (B, 3, H, W), on the unary's device.
        gaussian: As for `mean_field`.
        bilateral: As for `mean_field`.
        iterations: As for `mean_field`.
        scale: As for `mean_field`.

    Returns:
        (B, G, L, H, W).
    """
    with torch.autocast(unary.device.type, enabled=False):  # half-precision logits would be of no use
        dtype = torch.float64 if unary.dtype == torch.float64 else torch.float32
        unary, images = unary.to(dtype), images.to(dtype)
        size = unary.shape[-2:]
        problems = unary.shape[:3]
        small = reduced_size(size, scale, unary.device.type)
        full = Field(images, gaussian, bilateral)
        field, energy = full, unary
        if small != tuple(size):
            field = Field(F.interpolate(images, small, mode="nearest-exact"), gaussian, bilateral, size)
            energy = F.adaptive_avg_pool2d(unary.flatten(1, 2), small).view(*problems, *small)
        field.connect()
        belief = (-energy).softmax(2)
        for _ in range(iterations - 1):
            belief = (field.messages(belief.flatten(1, 2), field).view_as(energy) - energy).softmax(2)
        return (field.messages(belief.flatten(1, 2), full).view_as(unary) - unary).softmax(2)


class Field:
    """The positions and colours of the pixels of a batch of images, and the kernels between them.

    Args:
        images: (B, 3, h, w) in [0, 1].
        gaussian: As for `mean_field`.
        bilateral: As for `mean_field`.
        size: (H, W) of the image that positions refer to, where these pixels are a reduced version of it.
    """

    def __init__(
        self,
        images: Tensor,
        gaussian: Gaussian | None,
        bilateral: Bilateral | None,
        size: torch.Size | None = None,
    ) -> None:
        self.images = images
        self.gaussian = gaussian
        self.bilateral = bilateral
        self.rows, self.columns = (
            (torch.arange(n, dtype=torch.float64, device=images.device) + 0.5) * (whole / n) - 0.5
            for n, whole in zip(images.shape[-2:], size or images.shape[-2:], strict=True)
        )

    def connect(self) -> None:
        """Build the kernels among these pixels."""
        if self.gaussian:
            self.smoothness = SpatialFilter(self.rows, self.columns, self.gaussian[0])
        if self.bilateral:
            self.centre = self.raw_features().mean(1, keepdim=True)
            self.appearance = FeatureFilter(self.raw_features() - self.centre)

    def raw_features(self) -> Tensor:
        """Return position and colour in units of the appearance kernel's deviations, (B, h * w, 5)."""
        assert self.bilateral is not None
        sxy, srgb, _ = self.bilateral
        positions = torch.stack(torch.meshgrid(self.rows, self.columns, indexing="ij")).to(self.images) / sxy
        features = torch.cat([positions.expand(len(self.images), -1, -1, -1), self.images * (255 / srgb)], 1)
        return features.flatten(2).mT

    def messages(self, belief: Tensor, receivers: Field) -> Tensor:
        """Return the messages to the receivers' pixels: (B, C, h, w) -> (B, C, H, W), compatibilities included."""
        height, width = receivers.images.shape[-2:]
        total = belief.new_zeros(*belief.shape[:2], height, width)
        same = receivers is self
        if self.gaussian:
            total = total + self.gaussian[1] * self.smoothness(belief, receivers.rows, receivers.columns)
        if self.bilateral:
            values = belief.flatten(2).mT
            if same:
                message = self.appearance(values)
            else:
                message = self.appearance.at(receivers.raw_features() - self.centre, values)
            total = total + self.bilateral[2] * message.mT.unflatten(2, (height, width))
        return total


def reduced_size(size: torch.Size, scale: float | None, device: str) -> tuple[int, int]:
    """Return (height, width) of the pixels that send messages."""
    height, width = size
    if scale is None:
        scale = min(1.0, math.sqrt(SENDERS.get(device, SENDERS_ELSEWHERE) / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def check_parameters(who: str, gaussian: object, bilateral: object, iterations: object, scale: object) -> None:
    """Check that the parameters of `mean_field` are in range.

    Raises:
        PipelineError: One is not; names the value and what was expected.
    """
    kernels = (("gaussian", gaussian, "(sxy, compat)"), ("bilateral", bilateral, "(sxy, srgb, compat)"))
    for name, value, form in kernels:
        length = form.count(",") + 1
        if value is None:
            continue
        if not (isinstance(value, tuple) and len(value) == length and all(map(_positive, value))):
            raise PipelineError(f"{who}({name}={value!r}): {name} must be {form}, numbers above 0, or None for none.")
    whole("iterations", iterations, owner=who, error=PipelineError)
    if scale is not None and not (_positive(scale) and scale <= 1):  # type: ignore[operator]
        raise PipelineError(f"{who}(scale={scale!r}): scale must be a number, 0 < scale <= 1, or None to choose.")


def check_images(who: str, images: Tensor, like: Tensor) -> Tensor:
    """Return the images on the device of the tensor (B, ..., H, W) that they belong to.

    Raises:
        PipelineError: They are not (B, 3, H, W) floats in [0, 1].
    """
    expected = (len(like), 3, *like.shape[-2:])
    if tuple(images.shape) != expected or not images.is_floating_point():
        raise PipelineError(
            f"{who} got images of shape {tuple(images.shape)} and dtype {images.dtype}; expected floats {expected}, "
            "the images at the size of what is to be refined."
        )
    if not (images.amin() >= 0 and images.amax() <= 1):
        raise PipelineError(
            f"{who} got images from {images.amin():g} to {images.amax():g}; expected RGB in [0, 1], not normalised and "
            "not 0 to 255."
        )
    return images.to(like.device)


def _positive(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf
