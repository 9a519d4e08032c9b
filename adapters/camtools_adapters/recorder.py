"""Noting every tensor at every module's border during one forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camtools.model.guard import in_this_thread, open_modules
from camtools.model.outputs import tensors_in

# How many vectors before the logits to look at where the classifier itself passes no gradient.
VECTORS = 12


@dataclass
class Seen:
    """A tensor that went into or came out of a module, and how to get hold of it again."""

    layer: str
    side: Literal["input", "output"]
    index: int
    tensor: Tensor
    call: int  # of the module, in this forward
    version: int  # of the tensor, which in-place operations raise
    gradient: Tensor | None = None

    @property
    def changed(self) -> bool:
        """Whether an in-place operation changed the tensor after it was noted."""
        return _version(self.tensor) != self.version


class Recorder:
    """Notes every tensor at every module's border during one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.notes: list[Seen] = []
        self.calls: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Recorder:
        self.handles = []
        for name, module in open_modules(self.model).items():
            self.handles.append(
                module.register_forward_pre_hook(in_this_thread(self._note_input(name)), with_kwargs=True)
            )
            self.handles.append(module.register_forward_hook(in_this_thread(self._note_output(name))))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self.handles:
            handle.remove()

    def tensors(self) -> list[Seen]:
        """Return each tensor once, in the order they came up, named by the outermost module that made it.

        A tensor that no module made (a sum of branches) is named by the first module it enters; one that is changed in
        place by where it was met last. Names that a later call of the same module takes over do not count.
        """
        versions = {id(note.tensor): note.version for note in self.notes}
        first: dict[int, int] = {}
        kept: list[Seen] = []
        for note in self.notes:
            if not note.tensor.is_floating_point() or note.tensor.dim() not in (3, 4):
                continue
            if note.version != versions[id(note.tensor)] or note.call != self.calls[note.layer, note.side]:
                continue
            place = first.setdefault(id(note.tensor), len(kept))
            if place == len(kept):
                kept.append(note)
            elif note.side == "output" and (not note.layer or kept[place].layer.startswith(f"{note.layer}.")):
                kept[place] = note
        return kept

    def borders(self, seen: Seen) -> list[Seen]:
        """Return where a tensor can be taken hold of: as it is named, then as the output of modules inside that one."""
        inner = [
            note
            for note in self.notes
            if note.tensor is seen.tensor
            and note.side == "output"
            and note.call == self.calls[note.layer, note.side]
            and seen.side == "output"
            and (note.layer.startswith(f"{seen.layer}.") or (not seen.layer and note.layer))
        ]
        return [seen, *sorted(inner, key=lambda note: note.layer.count("."))]

    def returned_more(self, seen: Seen) -> bool:
        """Whether the module whose output a tensor is returned others with it: what it pooled of it, say."""
        place = (seen.layer, "output", seen.call)
        of = [note for note in self.notes if (note.layer, note.side, note.call) == place]
        return seen.side == "output" and len(of) > 1

    def vector_scores(self) -> Iterator[Tensor]:
        """Yield scalars of the vectors on the way to the logits, the last first.

        They stand in for the scores of a classifier that starts at zero and passes no gradient until it is trained.
        """
        vectors = [note.tensor for note in self.notes if note.tensor.dim() == 2 and note.tensor.requires_grad]
        for vector in reversed(vectors[-VECTORS:]):
            direction = torch.randn(vector.shape[1], generator=torch.Generator().manual_seed(0))
            yield (vector[0] * direction.to(vector)).sum()

    def _note(self, name: str, side: Literal["input", "output"], value: Any) -> None:
        call = self.calls[name, side] = self.calls.get((name, side), 0) + 1
        self.notes.extend(Seen(name, side, i, t, call, _version(t)) for i, t in enumerate(tensors_in(value)))

    def _note_input(self, name: str) -> Any:
        return lambda module, args, kwargs: self._note(name, "input", (args, kwargs))

    def _note_output(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Adaptive pooling to a grid larger than 1 x 1 (VGG) resamples F: its input is the finer map.
            if not isinstance(module, nn.AdaptiveAvgPool2d):
                self._note(name, "output", output)

        return hook


def _version(tensor: Tensor) -> int:
    """Return the in-place version counter; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version
