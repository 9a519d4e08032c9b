"""A network's earlier stages: the finer tensors before F, found by their grids and recorded during a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.layout import Layout, is_grid, to_nchw
from camtools.logits import tensors_in

_FINER = 1.5  # least ratio of sides between one stage's grid and the next; stages usually differ by 2


@dataclass(frozen=True)
class StageSpec:
    """The output of an earlier stage.

    Attributes:
        layer: Dotted name of the module whose output it is.
        layout: NCHW or NHWC.
        index: Which of several tensors, counted as in `FeatureSpec`.
        grid: Rows and columns for the input it was found with.
    """

    layer: str
    layout: Layout
    index: int
    grid: tuple[int, int]


class StageCapture:
    """Records the outputs of stages while the model runs, detached; a context manager around one forward.

    Args:
        model: The module whose stages these are.
        stages: Which.
    """

    def __init__(self, model: nn.Module, stages: tuple[StageSpec, ...]) -> None:
        self._model = model
        self._stages = stages
        self._recorded: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> StageCapture:
        for number, stage in enumerate(self._stages):
            module = self._model.get_submodule(stage.layer)
            self._handles.append(module.register_forward_hook(self._recorder(number, stage.index)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()

    def tensors(self, input_size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return what was recorded, (B, C, h, w) each, coarse to fine; of several calls in a forward the last.

        Args:
            input_size: (height, width) of the network's input in pixels.
        """
        found = ((number, stage) for number, stage in enumerate(self._stages) if number in self._recorded)
        return tuple(to_nchw(self._recorded[number], stage.layout, input_size) for number, stage in found)

    def _recorder(self, number: int, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # A clone, as an in-place operation may follow.
            self._recorded[number] = list(tensors_in(output))[index].detach().clone()

        return hook


class Observer:
    """Watches one forward for tensors on grids; a context manager, after which `stages` names the finer ones.

    Args:
        model: The module to watch.
        input_size: (height, width) of the input that it is going to be shown.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        self._model = model
        self._size = input_size
        self._seen: list[StageSpec] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Observer:
        for name, module in self._model.named_modules():
            if name:
                self._handles.append(module.register_forward_hook(self._watcher(name)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()

    def stages(self, grid: tuple[int, int]) -> tuple[StageSpec, ...]:
        """Return the last tensor of every resolution finer than a grid, coarse to fine.

        Of a resolution's tensors those of the least deeply nested modules count, as a network's stages are modules
        nearer to its root than what they are built of; of these the last.

        Args:
            grid: Rows and columns of F.
        """
        found: list[StageSpec] = []
        finer = {stage.grid for stage in self._seen if _ratio(stage.grid, grid) >= _FINER}
        for size in sorted(finer):
            if found and _ratio(size, found[-1].grid) < _FINER:
                continue
            same = [stage for stage in self._seen if stage.grid == size]
            least = min(stage.layer.count(".") for stage in same)
            found.append([stage for stage in same if stage.layer.count(".") == least][-1])
        return tuple(found)

    def _watcher(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for index, tensor in enumerate(tensors_in(output)):
                layout = _layout(tensor, self._size)
                if layout is not None:
                    rows = tensor.shape[2:] if layout is Layout.NCHW else tensor.shape[1:3]
                    self._seen.append(StageSpec(name, layout, index, (int(rows[0]), int(rows[1]))))

        return hook


def _layout(tensor: Tensor, input_size: tuple[int, int]) -> Layout | None:
    """Return the layout of a tensor of pictures; None for anything else."""
    if tensor.dim() != 4 or not torch.is_floating_point(tensor):
        return None
    if is_grid(tensor.shape[2], tensor.shape[3], input_size):
        return Layout.NCHW
    return Layout.NHWC if is_grid(tensor.shape[1], tensor.shape[2], input_size) else None


def _ratio(fine: tuple[int, int], coarse: tuple[int, int]) -> float:
    return min(fine[0] / coarse[0], fine[1] / coarse[1])
