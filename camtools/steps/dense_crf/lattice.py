"""The same inference by pydensecrf: on one CPU core, through the permutohedral lattice, an approximation."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camtools.errors import PipelineError
from camtools.steps.dense_crf.mean_field import Bilateral, Gaussian


def available() -> bool:
    """Whether pydensecrf can be imported."""
    return importlib.util.find_spec("pydensecrf") is not None


def require_available(who: str) -> None:
    """Raise an error where pydensecrf is missing.

    Raises:
        PipelineError: It is not installed; says how to get it, and what works without it.
    """
    if not available():
        raise PipelineError(
            f"{who} needs pydensecrf, which is not installed. Install it with `pip install 'camtools[crf]'` (package "
            "pydensecrf2), or use backend='torch', which needs nothing more."
        )


def infer(
    unary: Tensor, images: Tensor, gaussian: Gaussian | None, bilateral: Bilateral | None, iterations: int
) -> Tensor:
    """Solve G problems of L classes per image; the lattice of an image is built once for all of them.

    Args:
        unary: (B, G, L, H, W).
        images: (B, 3, H, W) in [0, 1]; rounded to 8 bits.
        gaussian: As for `camtools.steps.dense_crf.mean_field`.
        bilateral: As for `camtools.steps.dense_crf.mean_field`.
        iterations: As for `camtools.steps.dense_crf.mean_field`.

    Returns:
        Probabilities (B, G, L, H, W) float32 on the unary's device.
    """
    from pydensecrf import densecrf

    energies = unary.detach().float().flatten(3).cpu().numpy()
    pixels = (images.detach().float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    result = np.empty_like(energies)
    height, width = unary.shape[-2:]
    for image, rgb in enumerate(pixels):  # pydensecrf takes one image at a time
        crf: Any = densecrf.DenseCRF2D(width, height, unary.shape[2])
        if gaussian:
            crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        if bilateral:
            sxy, srgb, compat = bilateral
            crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(rgb), compat=compat)
        for problem, energy in enumerate(energies[image]):
            crf.setUnaryEnergy(np.ascontiguousarray(energy))
            result[image, problem] = np.asarray(crf.inference(iterations))
    return torch.from_numpy(result).view(unary.shape).to(unary.device)
