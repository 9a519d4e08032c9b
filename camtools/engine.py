"""TODO camtools.engine."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from camtools.errors import ModelError
from camtools.images.batches import Ready
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.device import to_model
from camtools.model.guard import untouched


def check_scores(logits: Tensor, batch: list[Ready]) -> None:
    """Refuse scores that are not numbers."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(batch[i].name for i in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise ModelError(
            f"the model returned NaN or infinite class scores for {names}. Check its weights; in float16 try "
            "bfloat16 or float32"
        )


class Sizes:
    """Which input sizes a model takes, tried once each.

    Args:
        model: The classifier.
    """

    def __init__(self, model: CamModel) -> None:
        self._model = model
        self._taken: dict[tuple[int, ...], bool] = {}

    def taken(self, x: Tensor) -> bool:
        """Tell whether the model can be run on inputs of this shape; warns once for each that it can't.

        Args:
            x: Inputs, (B, C, h, w).
        """
        shape = tuple(x.shape[1:])
        if shape not in self._taken:
            self._taken[shape] = self._try(shape)
            if not self._taken[shape]:
                name = type(unwrapped(self._model)).__name__
                warnings.warn(
                    f"{name} can't be run on {shape[1]} x {shape[2]} pixels, so the step Enlarge does nothing: maps "
                    "are made from the model's own input size. Leave Enlarge out to silence this.",
                    stacklevel=2,
                )
        return self._taken[shape]

    def _try(self, shape: tuple[int, ...]) -> bool:
        inner = unwrapped(self._model)
        # Noise, as adapters look for features with it, and all is alike in a black image.
        x = to_model(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)), inner)
        try:
            with torch.no_grad(), untouched(inner):
                self._model.activations(x)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except (ModelError, RuntimeError, AssertionError, ValueError, TypeError, IndexError):
            return False
        return True
