"""The context bank (CREAM): what a class and its surroundings look like in features, from forward passes alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camtools.checkpoints import weights_hash, write_tensors
from camtools.checks import as_path, one_of, share
from camtools.classes.matching import match_classes
from camtools.datasets.selection import Selection
from camtools.engine import Engine
from camtools.errors import InputError, PipelineError, WeightsError
from camtools.images.batches import read_batches
from camtools.images.read import check_dense
from camtools.model.cam_model import unwrapped, wrap
from camtools.model.guard import untouched
from camtools.pipeline.pipeline import Pipeline
from camtools.progress import progress_bar
from camtools.steps.base import State
from camtools.steps.cam import CAM
from camtools.steps.cream import foreground_mask, mean_features

Mode = Literal["momentum", "mean"]
_FORMAT = "camtools.ContextBank/1"
_TENSORS = ("foreground", "background", "counts")
_TEXTS = ("layer", "side", "model", "weights", "mode")


@dataclass(frozen=True, eq=False, repr=False)
class ContextBank:
    """Mean foreground and background features of every class: where CREAM's clustering starts.

    Source: Xu et al., "CREAM: Weakly Supervised Object Localization via Class RE-Activation Mapping", CVPR 2022,
    eq. 3-4. It is not back-propagated, so it can be fitted on a classifier that is trained already.

    Attributes:
        foreground: V_fg, (K, C) float32, zeros for a class without one; `background`: V_bg, likewise.
        counts: How many images gave each class a foreground and a background, (K, 2) int64.
        layer: Dotted name of the layer whose features these are; `side`: whether its "input" or "output".
        model: The model's class; `weights`: hash of its weights.
        mode: How images were averaged, "momentum" or "mean"; `momentum`: the share that older ones keep.
        delta: Share of its maximum above which the map counted as foreground.
    """

    foreground: Tensor
    background: Tensor
    counts: Tensor
    layer: str = ""
    side: str = ""
    model: str = ""
    weights: str = ""
    mode: str = "momentum"
    momentum: float = 0.8
    delta: float = 0.2

    def __post_init__(self) -> None:
        for name in _TENSORS:
            part = getattr(self, name)
            if not isinstance(part, Tensor):
                raise InputError(f"{name} is of type {type(part).__name__}: expected a tensor")
            check_dense(part, name)
        shape = tuple(self.foreground.shape)
        if len(shape) != 2 or tuple(self.background.shape) != shape or tuple(self.counts.shape) != (shape[0], 2):
            raise InputError(
                f"foreground {shape}, background {tuple(self.background.shape)}, counts {tuple(self.counts.shape)}: "
                "expected (K, C), (K, C) and (K, 2) for K classes and C channels"
            )
        if not all(bool(torch.isfinite(part).all()) for part in (self.foreground, self.background)):
            raise InputError("the vectors have a NaN or an infinity: expected finite ones. Fit the bank anew")

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        dataset: Any,
        momentum: float = 0.8,
        mode: Mode = "momentum",
        delta: float = 0.2,
        batch_size: int = 32,
        transform: Any = None,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> ContextBank:
        """Fit a bank to a classifier: one forward per image, nothing kept but the bank.

        The foreground of an image is where the CAM of its true class is above `delta` of its maximum (eq. 3), the
        background is the rest. Their mean features update the class's vectors (eq. 4); the first image of a class
        sets them, where the paper starts from noise. An image whose map has no foreground, or is foreground
        everywhere, leaves that vector as it is. An image with several classes updates each.

        Args:
            model: Any classifier; it is left exactly as it was.
            dataset: A `camtools.datasets` data set of records, a `Subset` of one, or a specification for
                `open_dataset`. Its order matters with "momentum".
            momentum: V <- momentum · V + (1 - momentum) · mean, in [0, 1).
            mode: "momentum", the paper's, in effect a mean of the last few images, or "mean" of all, in any order.
            delta: In [0, 1).
            batch_size: Images per forward; it does not change the result beyond rounding.
            transform: The model's preprocessing; None asks the model.
            device: Where to run; a model that lives elsewhere is copied there. None stays with the model.
            progress: Whether to show a progress bar, on a terminal.

        Returns:
            The bank, on the CPU. `missing` lists the classes of which there was no image.

        Raises:
            InputError: An argument or an image cannot be used, or no image gave any vector.
            TargetError: The data's classes are not the model's.
            ModelError: The model cannot be explained.
        """
        one_of("mode", mode, ("momentum", "mean"))
        share("momentum", momentum)
        share("delta", delta)
        data = Selection(dataset)
        engine = Engine(model, [Pipeline([CAM()])], device=device, transform=transform, batch_size=batch_size)
        inner = unwrapped(engine.model)
        first, second = tee(data.record(index) for index in data.indices)
        images = ((number, record.image) for number, record in enumerate(first))
        labels = (record.classes for record in second)
        updates, index = None, tuple[int, ...]()
        with progress_bar(len(data), "Fitting", progress) as advance:
            for batch in read_batches(images, labels, engine.transform, batch_size):
                forward = engine.run(batch)
                if updates is None:
                    classes = forward.logits.shape[1]
                    index = match_classes(data.classes, data.occurring, classes, engine.class_names).index
                    updates = BankUpdates(classes, momentum if mode == "momentum" else None)
                targets, valid = _padded([[index[label] for label in ready.target] for ready in batch.images])
                updates.add_maps(engine.maps(forward, targets)[0], valid, delta)
                advance(len(batch.images))
        if updates is None or not updates.counts.any():
            raise InputError(f"{data.spec}: no image gave a foreground or background: expected some with a class")
        place = engine.model.decomposition
        return updates.bank(
            layer=place.layer,
            side=place.side,
            model=type(inner).__name__,
            weights=weights_hash(inner),
            mode=mode,
            momentum=momentum,
            delta=delta,
        )

    @property
    def known(self) -> Tensor:
        """Whether each class has both vectors, (K,) bool."""
        return (self.counts > 0).all(1)

    @property
    def missing(self) -> list[int]:
        """The classes without a foreground or background, ascending; CREAM starts from the image's own for these."""
        return [int(index) for index in (~self.known).nonzero().flatten()]

    def vectors(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return V_fg and V_bg, (B, K', C), of classes (B, K'), and which have both, (B, K') bool; on their device.

        Raises:
            PipelineError: A label is not one of the bank's classes.
        """
        wanted, classes = labels.to(self.foreground.device), len(self.foreground)
        outside = wanted[(wanted < 0) | (wanted >= classes)]
        if len(outside):
            wrong = int(outside[0])
            raise PipelineError(f"class {wrong} is not in {self!r}: expected 0 to {classes - 1}, a bank of this model")
        fg, bg, known = (part[wanted].to(labels.device) for part in (self.foreground, self.background, self.known))
        return fg, bg, known

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the bank was not fitted to, by one forward of a random input.

        Args:
            model: Any classifier; it is left exactly as it was.

        Raises:
            WeightsError: Its features, classes, layer or weights are others; says which. Weights in another precision
                are others, too.
            ModelError: The model cannot be explained.
        """
        cam_model = wrap(model)
        inner = unwrapped(cam_model)
        with untouched(inner), torch.no_grad():
            found = cam_model.activations(cam_model.example())
        place = found.decomposition
        classes, channels = self.foreground.shape
        for name, own, theirs in (
            ("feature channels", channels, found.features.shape[1]),
            ("classes", classes, found.logits.shape[1]),
            ("layer", f"{self.side} of {self.layer!r}", f"{place.side} of {place.layer!r}"),
            ("weights", self.weights, weights_hash(inner)),
        ):
            if own != theirs:
                raise WeightsError(
                    f"This bank does not fit {type(inner).__name__}: {name} {own} in the bank, {theirs} in the model. "
                    "Fit one to this model: ContextBank.fit(model, dataset)"
                )

    def save(self, path: str | Path) -> None:
        """Write the bank and what it belongs to as one safetensors file, over any that is there, whole or not at all.

        Raises:
            InputError: It cannot be written.
        """
        texts = {name: str(getattr(self, name)) for name in _TEXTS}
        numbers = {name: repr(float(getattr(self, name))) for name in ("momentum", "delta")}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        write_tensors(as_path("path", path), tensors, {"format": _FORMAT} | texts | numbers)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> ContextBank:
        """Read a bank that `save` wrote.

        Args:
            path: The file.
            model: What it is for; one that it does not fit is refused, see `check`.

        Raises:
            WeightsError: The file is missing, damaged or no bank, or the bank does not fit the model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if (file := as_path("path", path, error=WeightsError)).exists() and not file.is_file():
                raise OSError("it is a folder, a pipe or a device")
            with safe_open(str(path), "pt") as opened:
                about, tensors = opened.metadata() or {}, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise WeightsError(f"There is no file {path}: expected a bank written by ContextBank.save") from error
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is no safetensors file: {error}. Expected one from ContextBank.save") from error
        try:
            if about["format"] != _FORMAT:
                raise KeyError("format")
            fields: dict[str, Any] = {name: about[name] for name in _TEXTS}
            fields |= {name: float(about[name]) for name in ("momentum", "delta")}
            bank = cls(**{name: tensors[name] for name in _TENSORS}, **fields)
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{path} is no context bank ({error}): expected one from ContextBank.save") from error
        if model is not None:
            bank.check(model)
        return bank

    def __repr__(self) -> str:
        """Name the bank such that two different ones never read the same: evaluations are told apart by it."""
        digest = hashlib.sha256()
        for name in _TENSORS:
            digest.update(getattr(self, name).detach().cpu().contiguous().numpy().tobytes())
        classes, channels = self.foreground.shape
        lacks = f", {len(self.missing)} missing" if self.missing else ""
        return f"ContextBank({classes} classes x {channels} channels{lacks}, {self.mode}, {digest.hexdigest()[:8]})"


def _padded(labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return each image's classes, (B, K') int64, and which of them count, (B, K') bool."""
    most = max(1, *map(len, labels))
    targets = torch.tensor([classes + [0] * (most - len(classes)) for classes in labels])
    return targets, torch.arange(most)[None] < torch.tensor([[len(classes)] for classes in labels])


class BankUpdates:
    """The vectors on their way, (2, K, C) float64: foreground, background.

    Args:
        classes: K.
        momentum: Share that V keeps at every update (eq. 4); None for plain means.
    """

    def __init__(self, classes: int, momentum: float | None = None) -> None:
        self.values = torch.zeros(2, classes, 0, dtype=torch.float64)
        self.counts = torch.zeros(2, classes, dtype=torch.int64)
        self.momentum = momentum

    def add_maps(self, state: State, valid: Tensor, delta: float) -> None:
        """Add a batch's mean features inside and outside its CAMs' foreground.

        Args:
            state: With `features`, signed `raw_maps` and their classes as `labels`.
            valid: Which of the maps count, (B, K') bool.
            delta: Share of the map's maximum above which it is foreground.
        """
        features, maps, labels = (state.require(name, type(self)) for name in ("features", "raw_maps", "labels"))
        mask = foreground_mask(maps, delta)
        for part, inside in enumerate((mask, ~mask)):
            self.add(part, labels.cpu(), valid, *mean_features(features, inside))

    def add(self, part: int, targets: Tensor, valid: Tensor, means: Tensor, present: Tensor) -> None:
        """Add the means of a batch's images as if one after another.

        Args:
            part: 0 for foreground, 1 for background.
            targets: Classes, (B, K') int64, on the CPU.
            valid: Which of them count, likewise, bool.
            means: (B, K', C).
            present: Whether there is a mean, (B, K') bool.
        """
        if not self.values.shape[2]:
            self.values = torch.zeros(2, len(self.counts[0]), means.shape[2], dtype=torch.float64)
        chosen = valid & present.cpu()
        labels, means = targets[chosen], means.cpu().double()[chosen]
        if not len(labels):
            return
        here = torch.nn.functional.one_hot(labels, self.counts.shape[1])
        number = here.cumsum(0).gather(1, labels[:, None])[:, 0]  # of its class in this batch, from 1
        total = here.sum(0)
        if self.momentum is not None:  # n updates at once: V <- m^n V + sum_i (1 - m) m^(n - i) x_i
            keep = torch.tensor(self.momentum, dtype=torch.float64)
            share = torch.where(self.counts[part][labels] + number == 1, 1.0, 1 - keep)
            means = (share * keep ** (total[labels] - number))[:, None] * means
            self.values[part] *= (keep**total)[:, None]
        self.values[part].index_add_(0, labels, means)
        self.counts[part] += total

    def bank(self, **about: Any) -> ContextBank:
        """Return the bank as it stands; the rest of its attributes by name."""
        divisor = self.counts.clamp_min(1)[..., None] if self.momentum is None else 1
        foreground, background = (self.values / divisor).float().unbind()
        return ContextBank(foreground.clone(), background.clone(), self.counts.T.contiguous(), **about)
