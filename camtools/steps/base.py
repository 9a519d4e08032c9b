"""The one state that steps hand on, and what a step is.

A pipeline is a list of small callables. Each declares the stage at which it acts and takes and returns a
`State`; no step holds hooks, models or anything else that outlives the call.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from camtools.errors import PipelineError
from camtools.model.backward import Backward

Resolution = Literal["feature", "image"]
Resize = Callable[[Tensor], Tensor]


class Stage(IntEnum):
    """Where in the pipeline a step acts; stages only ever go up."""

    INPUT = -1
    WEIGHTS = 0
    MAP = 1
    REFINE = 2
    THRESHOLD = 3
    PARTS = 4


@dataclass(frozen=True)
class State:
    """A batch of B images with K' classes each, on its way from features to masks.

    Attributes:
        features: The tensor F that enters the classifier's pooling, (B, C, h, w).
        weights: Class weights, (B or 1, K', C), or (B or 1, K', C, h, w) where they vary over positions.
        maps: Class maps, signed, (B, K', h, w) at feature resolution, (B, K', H, W) after `resize`.
        raw_maps: The maps as they left the map stage, before any refinement, (B, K', h, w).
        images: The images, (B, 3, H, W), RGB in [0, 1], at original resolution; only for steps that need them.
        masks: Where the object is, (B, K', H, W) bool.
        thresholds: The value each map was compared with, (B, K'); `masks` is `maps > thresholds`.
        parts: Which part of its mask each pixel is in, (B, K', H, W) int32: 1, 2 ... in each map, 0 outside the mask;
            None where no step split the masks.
        resize: Takes maps (B, K', h, w) from the feature grid to the original images' pixels, (B, K', H, W).
            None leaves them at feature resolution.
        stages: Outputs of the network's earlier stages, (B, C', h', w') each, coarse to fine, finer than F or as fine
            (`Activations.pyramid`); empty where it has none.
        labels: Which class each map is of, (B, K') int64, on any device; for steps on the feature grid.
        backward: From the features back to the coarsest of `pyramid`; for map steps.
    """

    features: Tensor | None = None
    weights: Tensor | None = None
    maps: Tensor | None = None
    raw_maps: Tensor | None = None
    images: Tensor | None = None
    masks: Tensor | None = None
    thresholds: Tensor | None = None
    parts: Tensor | None = None
    resize: Resize | None = None
    pyramid: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None
    backward: Backward | None = None

    def replace(self, **changes: Any) -> State:
        """Return a new state with the given fields changed; this one stays as it is."""
        return replace(self, **changes)

    def rows(self, chosen: Sequence[int]) -> State:
        """Return the state of some of the images, on the feature grid.

        Args:
            chosen: Positions in the batch, ascending.
        """
        batch = next((len(value) for value in (self.maps, self.features) if value is not None), 0)
        if list(chosen) == list(range(batch)):
            return self
        fields = {name: getattr(self, name) for name in ("features", "weights", "maps", "raw_maps", "labels")}
        changes: dict[str, Any] = {
            # Weights of one row are those of all images.
            name: value if value is None or (name == "weights" and len(value) == 1) else value[list(chosen)]
            for name, value in fields.items()
        }
        pyramid = self.pyramid and tuple(level[list(chosen)] for level in self.pyramid)
        return self.replace(**changes, pyramid=pyramid, backward=None)

    def classes(self, part: slice) -> State:
        """Return the state of some of the classes, on the feature grid."""
        fields = {name: getattr(self, name) for name in ("weights", "maps", "raw_maps", "labels")}
        return self.replace(**{name: value if value is None else value[:, part] for name, value in fields.items()})

    def require(self, field: str, step: object) -> Tensor:
        """Return a tensor field, or say which step misses it.

        Args:
            field: Name of one of the tensor attributes.
            step: Who asks; named in the error.

        Raises:
            PipelineError: The field is None.
        """
        value = getattr(self, field)
        if value is None:
            raise PipelineError(
                f"{step!r} needs {field}, but this state has none. Put a step that makes them before it, "
                f"or start the pipeline from a State with {field}=..."
            )
        return value


class Step(abc.ABC):
    """One mechanism of a pipeline.

    A subclass sets `stage`, takes its parameters as keyword-able constructor arguments stored under the same
    names, and implements `__call__` without changing the state it is given, nor itself: on pixels, several threads call
    one step at once.

    Attributes:
        stage: Where in the pipeline the step acts.
        resolution: Whether it works on the feature grid ("feature") or on the original image's pixels ("image").
        needs_image: Whether `State.images` must be filled.
        needs_pyramid: How many of `State.pyramid` the step looks at; 0 for none.
        needs_gradients: At how many of these it asks `State.backward` for gradients; 0 for none.
    """

    stage: ClassVar[Stage]
    resolution: ClassVar[Resolution] = "feature"
    needs_image: ClassVar[bool] = False
    needs_pyramid: int = 0
    needs_gradients: int = 0

    @abc.abstractmethod
    def __call__(self, state: State) -> State:
        """Apply the step to a batch and return the new state."""

    def fitted(self, model: nn.Module) -> Step:
        """Return the step with what it needs of the model that is explained; the step itself where that is nothing.

        Args:
            model: The module inside a `CamModel`; left as it was.

        Raises:
            PipelineError: The model lacks it.
        """
        return self

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"


def check_tensors(owner: str, **given: object) -> None:
    """Check arguments that must be tensors, or None.

    Raises:
        PipelineError: One is something else.
    """
    for name, value in given.items():
        if not isinstance(value, Tensor | None):
            raise PipelineError(f"{owner}({name}={value!r}): {name} must be a tensor, or None.")
