"""How a classifier is called: what its forward takes after the images, and which of its outputs are the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from camtools.errors import InputError, ModelError
from camtools.model.guard import in_this_thread
from camtools.model.outputs import Output, Reading, Tap, find_reading, tensors_in, told_classes


@dataclass(frozen=True)
class Call:
    """What a caller says about calling a model.

    Attributes:
        output: Which of the model's outputs holds the class scores; None finds out.
        args: What forward takes after the images. Tensors have a row per image, or one row for all of them; anything
            else is passed on as it is.
        kwargs: Likewise, by name.
    """

    output: Output = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.output is None or callable(self.output) or isinstance(self.output, int | str)):
            raise InputError(f"output={self.output!r}: expected a position, a key or attribute, or a function")
        if isinstance(self.args, Tensor | str) or not isinstance(self.args, Sequence):
            raise InputError(f"forward_args={self.args!r}: expected a tuple of what forward takes after the images")
        if not isinstance(self.kwargs, Mapping):
            raise InputError(f"forward_kwargs={self.kwargs!r}: expected a dictionary of what forward takes by name")

    def check(self, count: int) -> None:
        """Refuse tensors for forward that do not go with a batch.

        Args:
            count: How many images it has.

        Raises:
            InputError: A tensor has neither one row nor one per image.
        """
        for tensor in tensors_in((tuple(self.args), dict(self.kwargs))):
            if tensor.dim() and len(tensor) not in (1, count):
                raise InputError(
                    f"a tensor for forward (forward_args=, forward_kwargs=) has shape {tuple(tensor.shape)} for a "
                    f"batch of {count} images: expected one row for all of them, or one per image. "
                    "Give it a first axis of length 1, or explain these images on their own"
                )


class AsClassifier:
    """While entered, a module takes images alone and returns its logits alone, (B, K); a context manager.

    Whatever calls the module inside, an adapter's `locate` among it, need not know what else it takes and returns.

    Args:
        model: The module.
        call: How it is called.
        reading: Where its logits are, as far as that is known; `reading` afterwards has what was found.
        tapped: Whether to watch the end of forwards, `tap`, also where the logits are plain.
    """

    def __init__(self, model: nn.Module, call: Call, reading: Reading | None = None, *, tapped: bool = False) -> None:
        self.reading = reading
        self.tap = Tap() if tapped or reading is None or reading.ending in ("softmax", "sigmoid") else None
        self._model, self._call = model, call
        self._handles: list[RemovableHandle] = []
        self._batch = 0

    def __enter__(self) -> AsClassifier:
        before, after = in_this_thread(self._before), in_this_thread(self._after)
        self._handles = [
            self._model.register_forward_pre_hook(before, with_kwargs=True),
            self._model.register_forward_hook(after),
        ]
        if self.tap is not None:
            self.tap.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.tap is not None:
            self.tap.__exit__(*exc_info)
            self.tap.clear()
        for handle in self._handles:
            handle.remove()

    def bias(self, logits: Tensor) -> Tensor | None:
        """Return the bias of the linear layer that made the last forward's logits, (K,); None where there is none."""
        return None if self.tap is None else self.tap.bias(logits)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._batch = next(tensors_in((args, kwargs))).shape[0]
        if self.tap is not None:
            self.tap.clear()
        if not self._call.args and not self._call.kwargs:
            return None
        more, named = _rows((tuple(self._call.args), dict(self._call.kwargs)), self._batch)
        return (*args, *more), {**kwargs, **named}

    def _after(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        if self.reading is not None:
            try:
                return self.reading.logits(output, self._batch, self.tap)
            except ModelError:  # in training mode some models return more, or less, than in evaluation
                pass
        told = told_classes(module)
        self.reading = find_reading(output, self._batch, self.tap or Tap(), self._call.output, told)
        return self.reading.logits(output, self._batch, self.tap)


def _rows(value: Any, count: int) -> Any:
    """Give the tensors in nested arguments a row per image; an adapter's single image is the first."""
    if isinstance(value, Tensor):
        if value.dim() and len(value) == 1:
            return value.expand(count, *value.shape[1:])
        return value[:1] if value.dim() and count == 1 else value
    if isinstance(value, list) or (isinstance(value, tuple) and not hasattr(value, "_fields")):
        return type(value)(_rows(item, count) for item in value)
    if isinstance(value, dict):
        return {key: _rows(item, count) for key, item in value.items()}
    return value
