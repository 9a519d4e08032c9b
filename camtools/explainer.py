"""`explain` in one call, and `Explainer`, its reusable form: pictures in, explanations out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby, islice, repeat
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camtools.boxes import boxes_from_masks
from camtools.errors import InputError, ModelError, TargetError
from camtools.explanation import Explanation, probabilities
from camtools.geometry import Geometry
from camtools.guard import untouched
from camtools.inputs import Picture, read_picture, read_pictures
from camtools.logits import top_scores
from camtools.model import Activations, CamModel, unwrapped, wrap
from camtools.names import resolve_target
from camtools.pipeline import Pipeline
from camtools.preprocess import Preprocess, as_transform, display_image
from camtools.presets import as_pipeline
from camtools.steps.base import State, Step

Target = int | str

READERS = 4  # threads that read pictures ahead of the model
_ONE_READER = Lock()  # PIL images load their files when asked to, which two threads must not do at once


class _Ready(NamedTuple):
    """One picture on its way to the model."""

    name: str  # for messages
    picture: Picture
    tensor: Tensor  # (C, h, w)
    geometry: Geometry
    targets: list[int] | None


class Explainer:
    """Explains pictures with one model and one pipeline, prepared once.

    The model is run in eval mode and left exactly as it was: training flags, gradients, buffers and hooks.

    Args:
        model: Any classifier, or a `CamModel`.
        pipeline: Preset name, `Pipeline`, step, or list of steps.
        device: Where to run; a model that lives elsewhere is copied there, never moved. None stays with the model.
        batch_size: Pictures per forward.
        transform: What the model was trained with: a `Preprocess`, a torchvision or timm transform, or any
            deterministic callable from PIL image to tensor; None asks the model. Floating tensors skip it.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become `score`: "softmax", or "sigmoid" for multi-label models.

    Raises:
        ModelError: No module, or no adapter knows it.
        PipelineError: The pipeline is unknown or impossible.
        InputError: The transform or an argument cannot be used.
        TargetError: `class_names` is not a list of names.
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: str | Pipeline | Step | Sequence[Step] = "cam",
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}: expected a whole number of at least 1")
        if activation not in ("softmax", "sigmoid"):
            raise InputError(f"activation={activation!r}: expected 'softmax' or 'sigmoid'")
        self.pipeline = as_pipeline(pipeline)
        self.model: CamModel = wrap(_on_device(model, device))
        self.batch_size = batch_size
        self.activation: Literal["softmax", "sigmoid"] = activation
        adapter, inner = self.model.adapter, unwrapped(self.model)
        self.transform = as_transform(_own_transform(adapter.data_config(inner)) if transform is None else transform)
        self.class_names = adapter.class_names(inner) if class_names is None else _names(class_names)

    def __call__(
        self,
        images: Any,
        target: Target | Sequence[Target | Sequence[Target]] | Tensor | None = None,
        top_k: int | None = None,
    ) -> Explanation | list[Explanation] | list[list[Explanation]]:
        """Explain one picture or many.

        Args:
            images: A path, PIL image, array or tensor, or a list or batch of them; see `camtools.explain`.
            target: Class index or name; a list gives several classes for a single picture, one per picture for many
                (where an element may itself be a list). None takes the likeliest class.
            top_k: This many likeliest classes instead.

        Returns:
            One explanation for a single picture and a single class; a list for several classes or several pictures;
            a list of lists for both.

        Raises:
            InputError: A picture cannot be used.
            TargetError: A class does not exist, or `target` has the wrong length.
            ModelError: The model cannot be explained.
        """
        pictures, single = read_pictures(images)
        targets = _per_picture(target, len(pictures), single)
        numbered = iter([(None, images)] if single else enumerate(images))
        found = list(self._run(numbered, iter(targets), top_k))
        if top_k is None and not any(map(_is_list, targets)):
            ones = [one[0] for one in found]
            return ones[0] if single else ones
        return found[0] if single else found

    def stream(
        self, images: Iterable[Any], target: Target | Sequence[Target] | None = None, top_k: int | None = None
    ) -> Iterator[Explanation | list[Explanation]]:
        """Explain pictures one after another without keeping them: for more than fit in memory.

        Args:
            images: Any iterable of pictures; it is read `2 * batch_size` ahead.
            target: A class for all pictures, or a list of classes for each; None takes the likeliest.
            top_k: This many likeliest classes instead.

        Yields:
            What a call would give for each picture, in order.

        Raises:
            InputError: A picture cannot be used; those before it have been yielded by then.
            TargetError: A class does not exist.
            ModelError: The model cannot be explained.
        """
        if isinstance(target, (Tensor, np.ndarray)):
            target = target.tolist()
        several = top_k is not None or _is_list(target)
        for one in self._run(iter(enumerate(images)), repeat(target), top_k):
            yield one if several else one[0]

    def _run(
        self, images: Iterator[tuple[int | None, Any]], targets: Iterator[Any], top_k: int | None
    ) -> Iterator[list[Explanation]]:
        """Yield the explanations of each picture, one a class; pictures are read and prepared ahead in threads."""
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise TargetError(f"top_k={top_k!r}: expected a whole number of at least 1")
        paired = zip(images, targets, strict=False)
        ahead: list[Future[_Ready]] = []
        failure: BaseException | None = None
        with ThreadPoolExecutor(READERS) as pool:
            while failure is None:
                more = islice(paired, 2 * self.batch_size - len(ahead))
                ahead += [pool.submit(self._prepare, *image, target, top_k) for image, target in more]
                if not ahead:
                    return
                batch = []
                for future in ahead[: self.batch_size]:
                    failure = future.exception()
                    if failure is not None:
                        break
                    batch.append(future.result())
                ahead = ahead[self.batch_size :]
                for _, same in groupby(batch, key=lambda ready: ready.tensor.shape):
                    yield from self._explain(list(same), top_k)
        raise failure

    def _prepare(self, index: int | None, image: Any, target: Any, top_k: int | None) -> _Ready:
        """Read a picture and turn it into what the model takes."""
        if target is not None and top_k is not None:
            raise TargetError(f"both target={target!r} and top_k={top_k} were given; give one of them")
        wanted = None if target is None else list(target) if _is_list(target) else [target]
        if wanted == []:
            raise TargetError("the target list of a picture is empty; name at least one class, or pass None")
        # The model says how many classes there are, so indices are checked against it, later.
        targets = wanted and [resolve_target(t, self.class_names if isinstance(t, str) else None) for t in wanted]
        channels = self.transform.channels if isinstance(self.transform, Preprocess) else None
        with _ONE_READER if isinstance(image, Image.Image) else nullcontext():
            picture = read_picture(image, channels=channels, index=index)
        tensor, geometry = self.transform(picture)
        name = picture.source or ("the picture" if index is None else f"picture {index}")
        return _Ready(name, picture, tensor, geometry, targets)

    def _explain(self, batch: list[_Ready], top_k: int | None) -> list[list[Explanation]]:
        """Explain pictures whose tensors have one shape: one forward, then batched steps for each picture size."""
        inner = unwrapped(self.model)
        home = batch[0].tensor.device  # ready tensors may come from anywhere
        x = _to_model(torch.stack([ready.tensor.to(home) for ready in batch]), inner)
        with torch.inference_mode(False), torch.no_grad():
            with untouched(inner):
                activations = self.model.activations(x)
                _check_scores(activations.logits, batch)
                targets = self._targets(batch, activations.logits, top_k)
                weights = activations.weights(targets)
            with torch.autocast(x.device.type, enabled=False):
                # Half precision has too few levels for a map: from here on everything is float32.
                state = State(features=activations.features.detach().float(), weights=weights.detach().float())
                state = self.pipeline.features(state)
                return self._on_pictures(state, batch, activations, targets)

    def _targets(self, batch: list[_Ready], logits: Tensor, top_k: int | None) -> Tensor:
        """Return class indices (B, K'); pictures with fewer classes repeat their first."""
        classes = logits.shape[1]
        if self.class_names is not None and len(self.class_names) != classes:
            raise TargetError(
                f"{len(self.class_names)} class names were given for a model with {classes} classes; give one per class"
            )
        if top_k is not None and top_k > classes:
            raise TargetError(f"top_k={top_k} is more than the model's {classes} classes")
        likeliest = top_scores(logits, top_k or 1)
        if all(ready.targets is None for ready in batch):
            return likeliest
        wanted = [ready.targets or best for ready, best in zip(batch, likeliest.tolist(), strict=True)]
        for index in {index for row in wanted for index in row}:
            resolve_target(index, None, classes)  # says so where it is out of range
        longest = max(map(len, wanted))
        return torch.tensor([row + row[:1] * (longest - len(row)) for row in wanted], device=logits.device)

    def _on_pictures(
        self, state: State, batch: list[_Ready], activations: Activations, targets: Tensor
    ) -> list[list[Explanation]]:
        """Run the steps on the pictures' pixels, together for pictures of one geometry, and collect the results."""
        scores = probabilities(activations.logits, self.activation).gather(1, targets).cpu()
        labels, logits = targets.cpu(), activations.logits.detach()
        free = labels.shape[1] if all(ready.targets is None for ready in batch) else 1
        counts = [free if ready.targets is None else len(ready.targets) for ready in batch]
        found: list[list[Explanation]] = [[] for _ in batch]
        for geometry in dict.fromkeys(ready.geometry for ready in batch):
            members = [i for i, ready in enumerate(batch) if ready.geometry == geometry]
            done = self.pipeline.image(self._part(state, members, geometry, batch))
            maps, raw, masks, thresholds = (done.require(f, self) for f in ("maps", "raw_maps", "masks", "thresholds"))
            boxes, limits = iter(boxes_from_masks(masks)), thresholds.cpu()
            for row, i in enumerate(members):
                of_picture = [
                    Explanation(
                        label=int(labels[i, k]),
                        name=self._name(int(labels[i, k])),
                        score=float(scores[i, k]),
                        map=maps[row, k],
                        raw_map=raw[row, k],
                        threshold=float(limits[row, k]),
                        mask=masks[row, k],
                        boxes=next(boxes),
                        exact=activations.decomposition.exact,
                        layer=activations.decomposition.layer,
                        logits=logits[i],
                        picture=batch[i].picture,
                        transform=self.transform,
                    )
                    for k in range(labels.shape[1])
                ]
                found[i] = of_picture[: counts[i]]
        return found

    def _part(self, state: State, members: list[int], geometry: Geometry, batch: list[_Ready]) -> State:
        """Return the state of the pictures of one geometry, ready for the steps on their pixels."""
        changes: dict[str, Any] = {"resize": geometry.resize}
        if len(members) < len(batch):
            for name in ("features", "weights", "maps", "raw_maps"):
                value = getattr(state, name)
                changes[name] = value if value is None else value[members]
        if self.pipeline.needs_image:
            shown = np.stack([np.asarray(display_image(batch[i].picture, self.transform)) for i in members])
            pixels = torch.from_numpy(shown).permute(0, 3, 1, 2)
            changes["images"] = pixels.to(state.require("maps", self).device, torch.float32) / 255
        return state.replace(**changes)

    def _name(self, index: int) -> str:
        return str(index) if self.class_names is None else self.class_names[index]

    def __repr__(self) -> str:
        inner = type(unwrapped(self.model)).__name__
        return f"Explainer({inner} ({self.model.adapter.name}), {self.pipeline!r}, transform={self.transform!r})"


def explain(
    model: nn.Module,
    image: Any,
    *,
    target: Target | Sequence[Target | Sequence[Target]] | Tensor | None = None,
    top_k: int | None = None,
    pipeline: str | Pipeline | Step | Sequence[Step] = "cam",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> Explanation | list[Explanation] | list[list[Explanation]]:
    """Say where a classifier sees a class: map, mask and boxes, from one forward.

    Args:
        model: Any classifier: timm, torchvision, or a module of your own. It is left exactly as it was.
        image: One picture or a list of them: path, PIL image, uint8 tensor (C, H, W), or array (H, W[, C]) of uint8,
            uint16 or floats in [0, 1]. A floating tensor (C, H, W), or a batch (B, C, H, W), is taken as ready for the
            model, and boxes are in its pixels.
        target: Class index or name; a list gives several classes for a single picture, one per picture for many.
            None takes the likeliest class.
        top_k: This many likeliest classes instead.
        pipeline: Preset name ("cam", "rcam", "adaptive"), `Pipeline`, step, or list of steps.
        device: Where to run; a model that lives elsewhere is copied there. None stays with the model.
        batch_size: Pictures per forward.
        transform: The model's preprocessing; None asks the model. See `Explainer`.
        class_names: Names of the classes in order; None asks the model.
        activation: How logits become `score`: "softmax", or "sigmoid" for multi-label models.

    Returns:
        One `Explanation` for a single picture and class; a list for several classes or several pictures; a list of
        lists for both.

    Raises:
        InputError: A picture or argument cannot be used.
        TargetError: A class does not exist, or `target` has the wrong length.
        ModelError: The model cannot be explained.
        PipelineError: The pipeline is unknown or impossible.

    Example:
        >>> exp = camtools.explain(timm.create_model("resnet50", pretrained=True), "bird.jpg")
        >>> exp.name, exp.score, exp.box
    """
    explainer = Explainer(
        model,
        pipeline,
        device=device,
        batch_size=batch_size,
        transform=transform,
        class_names=class_names,
        activation=activation,
    )
    return explainer(image, target=target, top_k=top_k)


def _on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """Return the model, or a copy of it where it lives on another device."""
    if device is None or not isinstance(model, nn.Module):
        return model
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used: {reason}. Pass 'cpu', 'cuda' or 'auto'") from error
    if wanted.type == "meta":
        raise InputError(f"device={device!r} holds no values: expected one that computes. Pass 'cpu', 'cuda' or 'auto'")
    there = {p.device.type for p in model.parameters()} == {wanted.type}
    there = there and wanted.index in (None, *(p.device.index for p in model.parameters()))
    return model if there else copy.deepcopy(model).to(wanted)


def _own_transform(config: Any) -> Any:
    """Make a transform of what an adapter says about preprocessing; ImageNet's usual one where it says nothing."""
    if config is None:
        return Preprocess.imagenet()
    return Preprocess.from_timm(config) if isinstance(config, dict) else config


def _names(names: Any) -> list[str]:
    """Check class names that the caller gives."""
    listed = [] if isinstance(names, (str, Mapping)) or not isinstance(names, Iterable) else list(names)
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TargetError(f"class_names={names!r}: expected a list of one name per class, in the order of the scores")
    return listed


def _is_list(target: Any) -> bool:
    return isinstance(target, (Sequence, Tensor, np.ndarray)) and not isinstance(target, str)


def _per_picture(target: Any, count: int, single: bool) -> list[Any]:
    """Return one target, or list of targets, per picture."""
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    if single or not _is_list(target):
        return [target] * count
    if len(target) != count:
        raise TargetError(
            f"{len(target)} targets were given for {count} pictures; pass one per picture (each a class or a list of "
            "classes), or a single class for all"
        )
    return list(target)


def _to_model(x: Tensor, model: nn.Module) -> Tensor:
    """Bring a batch to the model's device and floating type."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    return x if reference is None else x.to(reference.device, reference.dtype)


def _check_scores(logits: Tensor, batch: list[_Ready]) -> None:
    """Refuse scores that are not numbers."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(batch[i].name for i in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise ModelError(
            f"the model returned NaN or infinite class scores for {names}. Check its weights; in float16 try "
            "bfloat16 or float32"
        )
