"""The map after every step of its pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TraceStep:
    """The maps after one step of a pipeline.

    The shapes are those of an `Explanation`, which has one map; `Pipeline.trace` gives a whole batch, with (B, K')
    before them.

    Attributes:
        step: The step as it is written, such as "NWC()"; or, where no step acted, "weights as trained",
            "maps as given" or "resize".
        stage: Where the pipeline was: "weights", "map", "refine", "resize" or "threshold".
        map: (h, w) signed up to the resize, (H, W) from there on. After a weights step, the map that the weights so far
            would make.
        mask: (H, W) bool after the threshold step, None before.
        normalised: Whether a step has normalised the map, so that it is in [0, 1].
    """

    step: str
    stage: str
    map: Tensor
    mask: Tensor | None = None
    normalised: bool = False

    def cpu(self) -> TraceStep:
        """Return a copy with its tensors on the CPU."""
        return replace(self, map=self.map.cpu(), mask=None if self.mask is None else self.mask.cpu())

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.map.shape))
        return f"TraceStep({self.step!r}, {self.stage}, {shape}{'' if self.mask is None else ', mask'})"


class Cut:
    """Takes one image and class out of a batch's tensors: a clone of each, the same one for the same tensor.

    So an explanation does not keep the whole batch alive, nor the same map twice.

    Args:
        label: Position of the class, in the second dimension.
    """

    def __init__(self, label: int) -> None:
        self._label = label
        self._cut: dict[int, Tensor] = {}

    def __call__(self, batch: Tensor, row: int) -> Tensor:
        """Return `batch[row, label]`, cloned once."""
        if id(batch) not in self._cut:
            self._cut[id(batch)] = batch[row, self._label].clone()
        return self._cut[id(batch)]

    def steps(self, trace: list[TraceStep], row: int) -> tuple[TraceStep, ...]:
        """Return a batch's trace for one of its images and classes."""
        return tuple(
            replace(entry, map=self(entry.map, row), mask=None if entry.mask is None else self(entry.mask, row))
            for entry in trace
        )
