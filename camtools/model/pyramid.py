"""A network's earlier stages: the finer tensors before F, found by their grids and recorded during a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.errors import ModelError
from camtools.model.guard import in_this_thread, open_modules
from camtools.model.layout import Layout, is_grid, to_nchw
from camtools.model.outputs import replace_tensor, tensors_in

_MOST_PREFIX_TOKENS = 16
_FINER = 1.5  # least ratio of sides between one stage's grid and the next; stages usually differ by 2
COARSER = "camtools_coarser"
"""Attribute of a layer whose stride was taken out: how many times as coarse its output was when all had theirs."""


@dataclass(frozen=True)
class LevelSpec:
    """The output of an earlier stage, or of a block in a network that has one grid from end to end.

    Attributes:
        layer: Dotted name of the module whose output it is.
        layout: NCHW, NHWC, or NLC for tokens.
        index: Which of several tensors, counted as in `FeatureSpec`.
        grid: Rows and columns for the input it was found with.
        prefix_tokens: How many tokens come before the positions.
        coarser: How many times as coarse the grid would be if no stride had been taken out before it.
    """

    layer: str
    layout: Layout
    index: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    coarser: int = 1

    @property
    def size(self) -> tuple[float, float]:
        """Rows and columns of the grid that it would be on if no stride had been taken out."""
        return self.grid[0] / self.coarser, self.grid[1] / self.coarser


@dataclass(frozen=True)
class StageOutput:
    """What a stage made of a batch.

    Attributes:
        raw: In the model's own layout, on the graph to F where that was asked for.
        spec: Which stage.
        input_size: (height, width) of the network's input in pixels.
    """

    raw: Tensor
    spec: LevelSpec
    input_size: tuple[int, int]

    @property
    def tensor(self) -> Tensor:
        """The features, (B, C, h, w), detached."""
        return self.nchw(self.raw.detach())

    def nchw(self, raw: Tensor) -> Tensor:
        """Return a tensor of the shape of `raw` as (B, C, h, w)."""
        return to_nchw(raw, self.spec.layout, self.input_size, self.spec.prefix_tokens)


class PyramidCapture:
    """Records the outputs of stages while the model runs; a context manager around one forward.

    With `gradients` the forward's autograd graph begins at the finest of that many stages: what comes before runs
    without a graph, unless the caller who trains has one already.

    Args:
        model: The module whose stages these are.
        pyramid: Which, coarse to fine.
        gradients: How many of them, from the coarsest on, F must be differentiable with respect to.

    Raises:
        ModelError: A layer is gone.
    """

    def __init__(self, model: nn.Module, pyramid: tuple[LevelSpec, ...], gradients: int = 0) -> None:
        self._pyramid = pyramid
        self._gradients = gradients
        self._recorded: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._modules: list[nn.Module] = []
        for stage in pyramid:
            try:
                self._modules.append(model.get_submodule(stage.layer))
            except AttributeError as error:
                raise ModelError(
                    f"{type(model).__name__} has no layer {stage.layer!r}, where one of its earlier stages was. If the "
                    "model was edited after it was wrapped, wrap it again"
                ) from error

    def __enter__(self) -> PyramidCapture:
        self._grad_mode = torch.is_grad_enabled()
        for number, (stage, module) in enumerate(zip(self._pyramid, self._modules, strict=True)):
            hook = (
                self._starter(number, stage.index) if number < self._gradients else self._recorder(number, stage.index)
            )
            self._handles.append(module.register_forward_hook(in_this_thread(hook)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        torch.set_grad_enabled(self._grad_mode)

    def stages(self, input_size: tuple[int, int]) -> tuple[StageOutput, ...]:
        """Return what was recorded, coarse to fine; of several calls in a forward the last.

        Args:
            input_size: (height, width) of the network's input in pixels.
        """
        found = ((number, spec) for number, spec in enumerate(self._pyramid) if number in self._recorded)
        return tuple(StageOutput(self._recorded[number], spec, input_size) for number, spec in found)

    def _recorder(self, number: int, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # A clone, as an in-place operation may follow.
            self._recorded[number] = list(tensors_in(output))[index].detach().clone()

        return hook

    def _starter(self, number: int, index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = recorded = list(tensors_in(output))[index]
            if not (tensor.requires_grad and torch.is_grad_enabled()):
                torch.set_grad_enabled(True)  # from here on; __exit__ puts it back
                recorded = (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()
            self._recorded[number] = recorded
            return replace_tensor(output, tensor, recorded.clone())

        return hook


class Observer:
    """Watches one forward for tensors on grids; a context manager, after which `pyramid` names the earlier stages.

    Args:
        model: The module to watch.
        input_size: (height, width) of the input that it is going to be shown.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int]) -> None:
        self._model = model
        self._size = input_size
        self._seen: list[LevelSpec] = []
        self._tokens: list[tuple[str, int]] = []  # modules that return a sequence of tokens, and how many
        self._entered: dict[str, int] = {}  # positions of what a module was last called with
        self._coarser = 1  # of the layers that ran so far, the most
        self._passed: dict[tuple[str, str], int] = {}  # the same at a module's input and output
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Observer:
        for name, module in open_modules(self._model).items():
            if name:
                self._handles.append(
                    module.register_forward_pre_hook(in_this_thread(self._counter(name)), with_kwargs=True)
                )
                self._handles.append(module.register_forward_hook(in_this_thread(self._watcher(name))))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()

    def pyramid(self, grid: tuple[int, int], layer: str = "", side: str = "output") -> tuple[LevelSpec, ...]:
        """Return the last tensor of every resolution finer than that of F, coarse to fine; where all are one, blocks.

        Where strides were taken out (`set_output_stride`, or a network that is built with dilations) the resolutions
        count that there were with them: so stages are the same, and two of them can be on one grid.

        A network's stages are modules nearer to its root than what they are built of. So of two resolutions too much
        alike to be two stages the one with the less deeply nested module stays; and of a resolution's tensors those
        count that are nested as deeply as its stages, the coarser ones included, or less.

        Args:
            grid: Rows and columns of F.
            layer: Dotted name of the layer whose tensor F is.
            side: Whether it is that layer's "input" or "output".
        """
        coarser = self._passed.get((layer, side), self._coarser)
        own = grid[0] / coarser, grid[1] / coarser
        least: dict[tuple[float, float], int] = {}
        for stage in self._seen:
            if _ratio(stage.size, own) >= _FINER:
                least[stage.size] = min(_depth(stage), least.get(stage.size, _depth(stage)))
        sizes: list[tuple[float, float]] = []
        for size in sorted(least, key=lambda size: (least[size], size)):
            if all(max(_ratio(size, other), _ratio(other, size)) >= _FINER for other in sizes):
                sizes.append(size)
        found: list[LevelSpec] = []
        deepest = 0
        for size in sorted(sizes):
            deepest = max(deepest, least[size])
            found.append([stage for stage in self._seen if stage.size == size and _depth(stage) <= deepest][-1])
        return tuple(found) or self._blocks(grid)

    def _blocks(self, grid: tuple[int, int]) -> tuple[LevelSpec, ...]:
        """Return what blocks at 3/4, 1/2 and 1/4 of the depth return, of a network that has one grid from end to end.

        Such networks (vision transformers, mixers) repeat a block: of modules with one parent, one type and parts of
        their own, which all return the grid, the most numerous are the blocks.
        """
        specs = [spec for spec in self._seen if spec.grid == grid]
        for name, count in self._tokens:
            prefix = count - grid[0] * grid[1]
            if 0 <= prefix <= _MOST_PREFIX_TOKENS:
                specs.append(LevelSpec(name, Layout.NLC, 0, grid, prefix))
        groups: dict[tuple[str, type[nn.Module]], list[LevelSpec]] = {}
        for spec in dict.fromkeys(specs):  # once, if the model ran several times
            module = self._model.get_submodule(spec.layer)
            if any(module.children()):
                groups.setdefault((spec.layer.rpartition(".")[0], type(module)), []).append(spec)
        blocks = max(groups.values(), key=len, default=[])
        places = [int(len(blocks) * share) - 1 for share in (0.75, 0.5, 0.25)]
        return tuple(blocks[place] for place in dict.fromkeys(places) if place >= 0)

    def _counter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            positions = [_positions(tensor, self._size) for tensor in tensors_in((args, kwargs))]
            self._entered[name] = max(positions, default=0)
            if self._entered[name] >= self._size[0] * self._size[1]:  # the image: a network begins
                self._coarser = 1
            self._coarser = self._passed[name, "input"] = max(self._coarser, _coarser(module))

        return hook

    def _watcher(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._passed[name, "output"] = self._coarser
            if isinstance(output, Tensor) and output.dim() == 3 and len(output) == 1 and output.is_floating_point():
                self._tokens.append((name, output.shape[1]))
            for index, tensor in enumerate(tensors_in(output)):
                layout = _layout(tensor, self._size)
                if layout is not None:
                    rows = tensor.shape[2:] if layout is Layout.NCHW else tensor.shape[1:3]
                    if self._made_of_as_many(name, int(rows[0] * rows[1])):
                        size = int(rows[0]), int(rows[1])
                        self._seen.append(LevelSpec(name, layout, index, size, coarser=self._coarser))

        return hook

    def _made_of_as_many(self, name: str, positions: int) -> bool:
        """Whether all that a module is part of was called with as many positions, or nothing is known of it.

        It was not where attention holds N x N affinities of N tokens, or a decoder enlarges its features.
        """
        parts = name.split(".")
        above = (".".join(parts[:count]) for count in range(1, len(parts)))
        return all(not self._entered.get(one) or self._entered[one] >= positions for one in above)


def _layout(tensor: Tensor, input_size: tuple[int, int]) -> Layout | None:
    """Return the layout of a tensor of one image; None for anything else, windows of an image among it."""
    if tensor.dim() != 4 or len(tensor) != 1 or not torch.is_floating_point(tensor):
        return None
    if is_grid(tensor.shape[2], tensor.shape[3], input_size):
        return Layout.NCHW
    return Layout.NHWC if is_grid(tensor.shape[1], tensor.shape[2], input_size) else None


def _positions(tensor: Tensor, input_size: tuple[int, int]) -> int:
    """Return how many positions a module's input has, on a grid or as a sequence of tokens; 0 if it has none."""
    layout = _layout(tensor, input_size)
    if layout is not None:
        rows = tensor.shape[2:] if layout is Layout.NCHW else tensor.shape[1:3]
        return int(rows[0] * rows[1])
    return tensor.shape[1] if tensor.dim() == 3 else 0


def _coarser(module: nn.Module) -> int:
    """Return how many times as coarse a layer's output would be with all strides; 1 where nothing tells.

    Besides the mark of `set_output_stride`, kernels dilated by 2, 4 or 8 tell: what comes before them lost its stride.
    """
    marked = int(getattr(module, COARSER, 1))
    if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and max(module.dilation) in (2, 4, 8):
        return max(marked, max(module.dilation))
    return marked


def _depth(stage: LevelSpec) -> int:
    return stage.layer.count(".")


def _ratio(fine: tuple[float, float], coarse: tuple[float, float]) -> float:
    return min(fine[0] / coarse[0], fine[1] / coarse[1])
