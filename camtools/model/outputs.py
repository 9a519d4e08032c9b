"""Finding the logits in whatever a model returns, and going behind probabilities to what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camtools.errors import ModelError

Activation = Literal["softmax", "sigmoid", "none"]
Output = int | str | Callable[[Any], Tensor] | None
"""Which of a model's outputs holds its class scores: a position, a key or attribute, or a function of the output."""

WAY_OUT = (
    "Give camtools a classifier (timm: num_classes > 0), or say where its logits are: output=INDEX, KEY or FUNCTION."
)
_DENSE = " If these are maps of the classes, say how they become scores: output=lambda out: out{}.mean((2, 3))."
# What torch calls the functions that classifiers end in; all their spellings come down to these.
_ENDINGS = {
    "softmax": "softmax",
    "log_softmax": "softmax",
    "sigmoid": "sigmoid",
    "expit": "sigmoid",
    "log_sigmoid": "sigmoid",
}
_COUNTS = ("num_classes", "num_labels", "n_classes", "nc")  # attributes that say how many classes a model has
_SUM = 2e-2  # what a row of probabilities may differ from 1 by: 1,000 of them in bfloat16
_DEEPEST = 3


class AmbiguousOutputError(ModelError):
    """Several of the tensors that a model returns could be its class scores."""


class Tap(TorchFunctionMode):
    """Notes vectors at the end of a forward: what linear layers make, and what activations make of what.

    Attributes:
        linear: (result, input, bias) of linear layers and 1 x 1 convolutions whose results are vectors.
        endings: ("softmax" or "sigmoid", before, after) of activations of vectors; log-softmax counts as softmax.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget an earlier forward."""
        self.linear: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.endings: list[tuple[Literal["softmax", "sigmoid"], Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", "")).removeprefix("special_")
        ending: Any = _ENDINGS.get(name.removesuffix("_"))
        before = args[0] if args else kwargs.get("input")
        if ending and name.endswith("_") and isinstance(before, Tensor):
            before = before.clone()  # the function works in place
        result = func(*args, **kwargs)
        if ending and isinstance(before, Tensor) and _is_vector(result):
            self.endings.append((ending, before, result))
        elif name in ("linear", "conv2d") and _is_vector(result):
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.linear.append((result, before, bias))
        return result

    def behind(self, scores: Tensor) -> tuple[Literal["softmax", "sigmoid"], Tensor] | None:
        """Return which activation made class scores (B, K), and of what (B, K); None where none did.

        The one column that was taken of a softmax over two classes comes with the other, as the second. Where the
        scores are another tensor than the activation's (rounded, clamped, a logarithm, written out in arithmetic, one
        head per class), they are known by their values.
        """
        for ending, before, after in reversed(self.endings):
            if not _share_memory(after, scores):
                continue
            if after.numel() == scores.numel():
                return ending, before.reshape(scores.shape)
            if ending == "softmax" and scores.shape[1] == 1 and after.shape[1:].numel() == 2:
                pair = before.flatten(1)
                return ending, pair if scores.storage_offset() % 2 else pair.flip(1)
        made = [before for _, before, _ in self.endings] + [result for result, _, _ in self.linear]
        vectors = [one.flatten(1) for one in made if one.dim() > 1 and len(one) == len(scores)]
        columns = [one for one in vectors if one.shape[1] == 1 and scores.shape[1] > 1]
        for vector in reversed([*vectors, *([torch.cat(columns[-scores.shape[1] :], 1)] if columns else [])]):
            for one in (vector, vector.flip(1)) if scores.shape[1] == 1 and vector.shape[1] == 2 else (vector,):
                known = None if _share_memory(one, scores) else _activation_between(one, scores)
                if known is not None:
                    return known, one
        return None

    def bias(self, logits: Tensor) -> Tensor | None:
        """Return the bias of the linear layer that made the logits, (K,); None where there is none."""
        return next((bias for result, _, bias in reversed(self.linear) if _share_memory(result, logits)), None)

    def made(self, scores: Tensor) -> bool:
        """Whether a linear layer made the scores, or what an activation made them of."""
        source = self.behind(scores)
        made_of = [scores] if source is None else [scores, source[1]]
        return any(_share_memory(result, one) for result, _, _ in self.linear for one in made_of)


@dataclass(frozen=True)
class Reading:
    """Where the logits are in a model's output.

    Attributes:
        path: Keys, attributes and positions that lead to the class scores.
        pick: The caller's own function in place of a path.
        ending: What makes probabilities of the logits in the model itself; "log" where that cannot be seen, so that
            their logarithm serves as the logits. None: the scores are logits.
    """

    path: tuple[int | str, ...] = ()
    pick: Callable[[Any], Any] | None = None
    ending: Literal["softmax", "sigmoid", "log"] | None = None

    @property
    def activation(self) -> Activation:
        """What turns these logits into the model's own probabilities, as far as its output tells."""
        return "sigmoid" if self.ending == "sigmoid" else "softmax"

    def scores(self, output: Any, batch_size: int) -> Tensor:
        """Return the class scores, (B, K), as the model returns them.

        Raises:
            ModelError: The output holds none there.
        """
        return class_scores(self.place(output), batch_size)

    def place(self, output: Any) -> Any:
        """Return what the output holds there."""
        found = output if self.pick is None else self.pick(output)
        for step in self.path:
            found = _step(found, step)
        return found

    def logits(self, output: Any, batch_size: int, tap: Tap | None) -> Tensor:
        """Return the logits, (B, K); `tap` watched the forward where there is an ending to go behind."""
        scores = self.scores(output, batch_size)
        source = tap.behind(scores) if tap is not None and self.ending in ("softmax", "sigmoid") else None
        if source is not None:
            return source[1]
        return scores if self.ending is None else scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def find_reading(output: Any, batch_size: int, tap: Tap, choice: Output = None, classes: int | None = None) -> Reading:
    """Find the logits in a model's output.

    Args:
        output: What the model's forward returned.
        batch_size: Number of images that went in, B.
        tap: Watched that forward.
        choice: What the caller says.
        classes: How many classes the model says it has; None where it does not.

    Raises:
        AmbiguousOutputError: Several tensors could be the class scores; lists them.
        ModelError: There are no class scores in the output.
    """
    if callable(choice):
        reading = Reading(pick=choice)
    elif choice is not None:
        reading = Reading((choice,))
    else:
        reading = Reading(_best(output, batch_size, tap, classes))
    scores = reading.scores(output, batch_size)
    raw = reading.place(output)
    if choice is None and raw.dim() > 2 and not tap.made(scores):  # a network that was cut behind its pooling
        raise ModelError(
            f"the model returned a tensor of shape {tuple(raw.shape)} that no linear layer made; expected class scores "
            f"of shape (batch, classes) with batch {batch_size}. {WAY_OUT} If these are class scores: output=lambda "
            "out: out.flatten(1)"
        )
    source = tap.behind(scores)
    if source is not None and (source[0] == "sigmoid" or _activation_between(source[1], scores)):
        return Reading(reading.path, reading.pick, source[0])
    return Reading(reading.path, reading.pick, "log" if _are_probabilities(scores) else None)


def class_scores(found: Any, batch_size: int) -> Tensor:
    """Return one tensor of a model's output as class scores, (B, K).

    Args:
        found: The tensor.
        batch_size: Number of images that went in, B.

    Raises:
        ModelError: It is none, or not one row of numbers per image.
    """
    expected = f"class scores of shape (batch, classes) with batch {batch_size}"
    if not isinstance(found, Tensor):
        raise ModelError(f"the model returned {type(found).__name__} without logits; expected {expected}. {WAY_OUT}")
    if found.dim() < 2 and found.numel() and found.numel() % batch_size == 0:
        found = found.reshape(batch_size, -1)  # squeezed: one score per image, or the scores of one image
    if found.dim() > 2 and len(found) == batch_size and _is_row(found):
        found = found.flatten(1)  # (B, K, 1, 1), as a convolution after the pooling has it
    if found.dim() != 2 or found.shape[0] != batch_size or not found.is_floating_point():
        maps = found.dim() == 4 and found.shape[0] == batch_size and found.is_floating_point()
        raise ModelError(
            f"the model returned a {found.dtype} tensor of shape {tuple(found.shape)}; expected {expected}. {WAY_OUT}"
            + _DENSE.format("") * maps
        )
    if found.shape[1] == 0:
        raise ModelError(f"the model has 0 classes; expected {expected}. {WAY_OUT}")
    return found


def told_classes(model: Any) -> int | None:
    """Return how many classes a model says it has, by its own attributes or its `config`'s; None where it does not."""
    for holder in (model, getattr(model, "config", None)):
        for name in _COUNTS:
            count = getattr(holder, name, None)
            if isinstance(count, int) and count > 0:
                return count
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def replace_tensor(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return `value` with one tensor (by identity) exchanged; containers on the way are rebuilt, others kept."""
    if value is old:
        return new
    if isinstance(value, tuple):
        items = [replace_tensor(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return [replace_tensor(item, old, new) for item in value]
    if isinstance(value, dict):
        return type(value)((key, replace_tensor(item, old, new)) for key, item in value.items())
    return value


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Turn logits (B, K) into probabilities; "none" leaves them, one class alone has a sigmoid otherwise."""
    scores = logits.float()
    if activation == "none":
        return scores
    if activation == "sigmoid" or logits.shape[1] == 1:
        return torch.sigmoid(scores)
    return torch.softmax(scores, dim=1)


def _best(output: Any, batch_size: int, tap: Tap, classes: int | None) -> tuple[int | str, ...]:
    """Return the path to the one tensor that is the class scores, by what speaks for each."""
    if isinstance(output, Tensor):
        return ()
    found = {path: t for path, t in _candidates(output) if t.dim() > 1 and len(t) == batch_size and _is_row(t)}
    found = found or {path: t for path, t in _candidates(output) if t.dim() == 1 and len(t) == batch_size}
    if not found:
        dense = next((path for path, t in _candidates(output) if t.dim() == 4 and len(t) == batch_size), None)
        raise ModelError(
            f"the model returned {type(output).__name__} without logits; expected class scores of shape (batch, "
            f"classes) with batch {batch_size}. {WAY_OUT}" + (_DENSE.format(_written(dense)) if dense else "")
        )
    named = [path for path in found if str(path[-1]).lower() in ("logits", "logit")]
    left = list(found) if len(named) != 1 else named
    tests: tuple[Callable[[tuple[int | str, ...]], bool], ...] = (
        lambda path: not any(_share_memory(a, found[path]) and _is_one(b, found, path) for _, b, a in tap.endings),
        lambda path: "aux" not in str(path[-1]).lower(),
        lambda path: classes is not None and found[path].shape[1:].numel() == classes,
        lambda path: not any(_feeds(found[path], found[other], tap) for other in left if other != path),
        lambda path: tap.made(found[path]),
    )
    for test in tests:
        if len(left) > 1:
            left = [path for path in left if test(path)] or left
    if len(left) > 1:
        listed = ", ".join(f"{_written(path)} of shape {tuple(found[path].shape)}" for path in left)
        first = left[0][0] if len(left[0]) == 1 else None
        columns = all(found[path].shape[1:].numel() == 1 for path in left)
        how = f"output={first!r}" if first is not None else f"output=lambda out: out{_written(left[0])}"
        raise AmbiguousOutputError(
            f"the model returned {type(output).__name__} in which {len(left)} tensors could be the class scores: "
            f"{listed}. Say which: {how}, or a function of the output"
            + ", such as output=lambda out: torch.cat(out, 1) for all"
            * (columns and type(output) in (list, tuple))
        )
    return left[0]


def _candidates(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], Tensor]]:
    """Yield the floating tensors in an output, with the steps that lead to each."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif len(path) < _DEEPEST:
        items: Any = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif hasattr(value, "_fields"):
            items = zip(value._fields, value, strict=True)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            items = enumerate(value)
        elif hasattr(value, "__dict__"):
            items = ((key, item) for key, item in vars(value).items() if not key.startswith("_"))
        for key, item in items:
            yield from _candidates(item, (*path, key))


def _step(value: Any, key: int | str) -> Any:
    try:
        if isinstance(value, Tensor):
            raise TypeError("it is a tensor")
        if isinstance(value, Mapping):
            return value[key] if key in value else list(value.values())[int(key)]
        return getattr(value, key) if isinstance(key, str) else value[key]
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        held = list(value) if isinstance(value, Mapping) else f"{len(value)} items" if hasattr(value, "__len__") else ""
        raise ModelError(
            f"output={key!r} is not in what the model returned, {type(value).__name__} {held}".rstrip()
            + ": expected a position, key or attribute of it, or a function"
        ) from error


def _written(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _is_row(tensor: Tensor) -> bool:
    """Whether each image has one row of numbers, whatever axes of length one there are."""
    return tensor.shape[1:].numel() == max(tensor.shape[1:]) > 0


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[2:].numel() == 1


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.device == other.device and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0
    )


def _is_one(before: Tensor, found: Mapping[Any, Tensor], path: Any) -> bool:
    return any(_share_memory(before, tensor) for other, tensor in found.items() if other != path)


def _feeds(one: Tensor, other: Tensor, tap: Tap) -> bool:
    """Whether `other` was computed from `one`: by a linear layer right after it, or by autograd where that is on."""
    if any(_share_memory(used, one) and _share_memory(result, other) for result, used, _ in tap.linear):
        return True
    if not (one.requires_grad and other.requires_grad and torch.is_grad_enabled()):
        return False
    (gradient,) = torch.autograd.grad(other.sum(), one, retain_graph=True, allow_unused=True)
    return gradient is not None


def _are_probabilities(scores: Tensor) -> bool:
    """Whether rows of two or more numbers in [0, 1] sum to one."""
    values = scores.detach().float()
    inside = values.shape[1] > 1 and bool(((values >= 0) & (values <= 1)).all())
    tolerance = 1e-4 if scores.dtype in (torch.float32, torch.float64) else _SUM
    return inside and bool(((values.sum(1) - 1).abs() < tolerance).all())


def _activation_between(logits: Tensor, scores: Tensor) -> Literal["softmax", "sigmoid"] | None:
    """Return what makes these scores of these logits: probabilities, their logarithms, or per cents."""
    z, p = logits.detach().float(), scores.detach().float()
    if z.shape[0] != p.shape[0] or z.shape[1] not in (p.shape[1], 2 * p.shape[1]):
        return None
    near = 1e-3 if scores.dtype in (torch.float32, torch.float64) else _SUM
    made: Any = {"softmax": torch.softmax(z, 1)[:, -p.shape[1] :], "sigmoid": torch.sigmoid(z)}
    for name, values in made.items():
        if values.shape != p.shape or (name == "softmax" and z.shape[1] == 1):
            continue
        if any(torch.allclose(p, one, rtol=near, atol=1e-6) for one in (values, values.log(), 100 * values)):
            return name
    return None
