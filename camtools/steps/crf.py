"""CRF: a fully connected conditional random field that draws the map to the image's edges."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from camtools.checks import number
from camtools.errors import PipelineError
from camtools.steps.base import Stage, State, Step
from camtools.steps.dense_crf import lattice
from camtools.steps.dense_crf.mean_field import Bilateral, Gaussian, check_images, check_parameters, infer

Backend = Literal["auto", "torch", "pydensecrf"]


class CRF(Step):
    """Replace each map by the foreground posterior of a fully connected CRF over the image's pixels.

    Every map is a problem of its own, foreground against background. The unary comes from the normalised map m,
    clamped to [eps, 1 - eps]: the odds of foreground are m / (1 - m) times (1 - b) / b with b the `background`
    score, the map value at which both are equally likely. So with b = 0.5 the foreground probability is m and the
    background's is 1 - m, under which a map with a narrow peak may lose its object altogether; a lower b keeps wider
    objects. Two kernels make neighbours agree, one over nearby pixels, one over pixels near in space and colour;
    `camtools.steps.dense_crf.mean_field` has the formulas.

    Reads `State.images`, (B, 3, H, W) RGB in [0, 1], and the normalised `State.maps`, (B, K', H, W) in [0, 1]; the new
    maps are float32 probabilities in [0, 1], without gradient. A map without contrast counts as zeros and stays so,
    and so does one with a NaN or an infinity in it. Put it after the step that normalises. The posterior is mostly
    near 0 or 1, and 0.5 is its natural threshold, though it need not reach 1: thresholds are relative to its maximum.

    Backends: "torch" is exact, batched, and runs on the maps' device; its time grows with the square of the number of
    pixels, hence `scale`. "pydensecrf" (extra `crf`) approximates the kernels on a lattice, one image at a time on
    one core, in time linear in the pixels. "auto" is pydensecrf for maps on the CPU where it is installed and
    `scale` is None, else torch.

    Source: Krähenbühl and Koltun, NIPS 2011; as a post-processor of class activation maps in the slides of RCAM (Bae,
    Noh and Kim), which give no parameters: those here are the ones of pydensecrf's examples.

    Args:
        background: Map value at even odds, above 0 and below 1.
        eps: Least probability of either class before `background` comes in, above 0 and below 0.5.
        gaussian: (sxy in pixels, compatibility) of the smoothness kernel; None leaves it out.
        bilateral: (sxy in pixels, srgb in levels of 0 to 255, compatibility) of the appearance kernel; None leaves it
            out.
        iterations: Mean-field iterations, at least 1.
        backend: "auto", "torch" or "pydensecrf".
        scale: For torch: the share of height and width at which all but the last iteration run, above 0 up to 1; 1 is
            exact. The last one is joint: every pixel of the full size gathers from the reduced ones. None: 1 up to
            512 x 512 pixels on CUDA, else what leaves as many; on other devices what leaves 56 x 56.

    Raises:
        PipelineError: A parameter is not in its range, or pydensecrf is asked for and not installed; or, when called,
            the state has no maps or no images, or they don't fit.
    """

    stage = Stage.REFINE
    resolution = "image"
    needs_image = True

    def __init__(
        self,
        background: float = 0.5,
        eps: float = 0.01,
        gaussian: Gaussian | None = (3, 3),
        bilateral: Bilateral | None = (80, 13, 10),
        iterations: int = 10,
        backend: Backend = "auto",
        scale: float | None = None,
    ) -> None:
        number("background", background, "(0, 1)", owner="CRF", error=PipelineError)
        number("eps", eps, "(0, 0.5)", owner="CRF", error=PipelineError)
        check_parameters("CRF", gaussian, bilateral, iterations, scale)
        if backend not in ("auto", "torch", "pydensecrf"):
            raise PipelineError(f"CRF(backend={backend!r}): backend must be 'auto', 'torch' or 'pydensecrf'.")
        if backend == "pydensecrf":
            lattice.require_available("CRF(backend='pydensecrf')")
            if scale is not None:
                raise PipelineError(
                    f"CRF(backend='pydensecrf', scale={scale!r}): scale is for backend='torch'; leave it out here."
                )
        self.background = background
        self.eps = eps
        self.gaussian = gaussian
        self.bilateral = bilateral
        self.iterations = iterations
        self.backend: Backend = backend
        self.scale = scale

    def __call__(self, state: State) -> State:
        """Return the state with the posterior as maps."""
        maps = state.require("maps", self).detach().float()
        images = check_images(repr(self), state.require("images", self).detach(), maps)
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        usable = low.isfinite() & high.isfinite() & (low < high)
        if (usable & ((low < 0) | (high > 1))).any():
            raise PipelineError(
                f"{self!r} needs maps within [0, 1], but these go from {low[usable].min():g} to "
                f"{high[usable].max():g}. Put MinMax(), or another step that normalises, before it."
            )
        unary = self._unary(torch.where(usable, maps, 0.0))
        kernels = (self.gaussian, self.bilateral, self.iterations)
        if self.on_lattice(maps):
            posterior = lattice.infer(unary, images, *kernels)
        else:
            posterior = infer(unary, images, *kernels, self.scale)
        return state.replace(maps=torch.where(usable, posterior[:, :, 1], 0.0))

    def _unary(self, maps: Tensor) -> Tensor:
        """Return the energies of background and foreground, (B, K', 2, H, W)."""
        probability = maps.clamp(self.eps, 1 - self.eps)
        background, foreground = (1 - probability) * self.background, probability * (1 - self.background)
        return -torch.stack([background, foreground], 2).log()

    def on_lattice(self, maps: Tensor) -> bool:
        """Whether pydensecrf does the work."""
        if self.backend == "auto":
            return maps.device.type == "cpu" and self.scale is None and lattice.available()
        return self.backend == "pydensecrf"
