"""One fine-tune under way: batches, precision, updates and the moving average, on the devices `accelerate` finds."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from camtools.errors import InputError, ModelError
from camtools.heads.headed import HeadedModel
from camtools.model.device import has_bf16
from camtools.training.augment import cutmix, move_boxes, move_map, plain_transform, seeded, training_transform
from camtools.training.config import TrainConfig
from camtools.training.data import Batch, Images, Loader, TrainingSet
from camtools.training.frozen import freeze, kept_features, layer_of, split
from camtools.training.optimizer import build_optimizer, rate_factor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from camtools.images.preprocess import Preprocess

_CUTMIX, _MODEL = 1_000_003, 1_000_033  # so that streams of random numbers differ from the images' own
_MOST_WORKERS = 8
_VIEWED = ("augment", "resize", "crop_scale", "has_grid", "has_cell", "has_drop", "input_size")  # what views depend on


class Trainer:
    """What recipes get to see of a fine-tune.

    Args:
        config: The recipe's settings.
        model: What the recipe built, on any device; trained in place.
        fast: Parameters whose learning rate is `head_lr_factor` times as high.
        data: Images and labels.
        classes: K.
        shares: Whether labels are (B, K) shares.
        preprocess: The model's.
        accelerator: Knows devices, processes and precision.
        cache: Folder for what a frozen part gives; None where that runs at every step.
        shown: Whether to show how far that is.

    Attributes:
        model: The model to call: compiled, distributed, in mixed precision.
        inner: The module inside, for everything else; without a frozen part whose outputs are kept, which then come as
            `Batch.images`.
        device: Where both are.
        epoch: From 0.
        batch: Batches of this process that are done in this epoch.
        updates: Updates since the start, over all epochs.
        between_updates: Whether no gradients are waiting for more batches of their group.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        fast: Sequence[nn.Parameter],
        data: TrainingSet,
        classes: int,
        shares: bool,
        preprocess: Preprocess,
        accelerator: Accelerator,
        cache: Path | None = None,
        shown: bool = False,
    ) -> None:
        self.config, self.data, self.classes, self.shares = config, data, classes, shares
        self.preprocess, self.accelerator, self.device = preprocess, accelerator, accelerator.device
        self.inner = self._whole = channels_last(model.to(self.device))
        images = Images(data, training_transform(config, preprocess), classes, shares, config.seed, config.views)
        self._images = images
        self._frozen: Sequence[nn.Module] = ()
        read: Dataset[Any] = images
        if config.freeze is not None:
            self._frozen, self.inner, read = self._freeze(config.freeze, images, cache, shown)
        average = get_ema_multi_avg_fn(config.ema)
        self.averaged = AveragedModel(self._whole, multi_avg_fn=average, use_buffers=True) if config.ema else None
        optimizer = build_optimizer(self.inner, fast, config)
        made: Any = torch.compile(self.inner) if config.compile else self.inner
        self.model: nn.Module = accelerator.prepare_model(made)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)
        gpu, workers = self.device.type == "cuda", config.workers
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(_MOST_WORKERS, cores) if gpu else 0
        self._loader = Loader(read, workers, gpu)
        self.epoch = self.batch = self.updates = 0
        self.between_updates = True
        self._sums: dict[str, Tensor] = {}
        self._group, self._batches = 1, 1

    def precision(self) -> Any:
        """Return the context in which forwards run: autocast where mixed precision is asked for."""
        return self.accelerator.autocast()

    def update(self, loss: Tensor) -> None:
        """Follow a loss's gradients one step; with `accumulate`, the last batch of a group takes the step.

        Args:
            loss: Scalar, from a forward of `model`.
        """
        self.accelerator.backward(loss / self._group)
        if self.between_updates:
            self._step()

    def update_inner(self, loss: Tensor) -> None:
        """Likewise for a loss from parts of `inner`, past `model`; processes share the mean gradient.

        Args:
            loss: Scalar.
        """
        self.accelerator.backward(loss / self._group)
        if self.between_updates:
            for parameter in self.inner.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            self._step()

    def update_only(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Follow a loss's gradients for some parameters; all others, and what the optimiser knows of them, stay.

        The loss may come from any computation with them, also one past `model`; processes share the mean gradient.

        Args:
            loss: Scalar.
            parameters: Some of the model's.
        """
        scaler = self.accelerator.scaler
        gradients = torch.autograd.grad(loss if scaler is None else scaler.scale(loss), list(parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = self.accelerator.reduce(gradient, "mean")
        self._step()

    def plain_batches(self, positions: Sequence[int] | None = None, size: int | None = None) -> Iterator[Batch]:
        """Yield training images once, in order and without augmentation.

        Args:
            positions: Which; None for this process's share of all.
            size: Side of the inputs in pixels; None for that of training.
        """
        if positions is None:
            positions = range(self.accelerator.process_index, len(self.data), self.accelerator.num_processes)
        config = self.config if size is None else replace(self.config, input_size=size)
        count, transform = config.batch_size, plain_transform(config, self.preprocess)
        images = Images(self.data, transform, self.classes, self.shares, self.config.seed)
        for batch in Loader(images).epoch(0, [list(positions[i : i + count]) for i in range(0, len(positions), count)]):
            yield self._placed(batch)

    def boxes_of(self, batch: Batch, boxes: Tensor) -> Tensor:
        """Return where boxes are in a batch's augmented images, whose crops and flips they follow.

        Args:
            batch: Of this epoch.
            boxes: One per image of the batch, x0, y0, x1, y1 as shares of the whole image's sides, (B, 4).

        Returns:
            Shares of the input's sides, (B, 4) on the CPU, within [0, 1].
        """
        return torch.cat([move_boxes(self.config, self.preprocess, box[None]) for box in self._drawn(batch, boxes)])

    def maps_of(self, batch: Batch, maps: Tensor) -> Tensor:
        """Return what maps of whole images are in a batch's augmented ones, whose crops and flips they follow.

        Args:
            batch: Of this epoch.
            maps: One per image of the batch, (B, h, w) float, on the CPU.

        Returns:
            At the input's size, (B, H, W) on the CPU.
        """
        return torch.stack([move_map(self.config, self.preprocess, map) for map in self._drawn(batch, maps)])

    def own_batches(self, batches: list[list[int]]) -> list[list[int]]:
        """Return this process's share of an epoch's batches; all processes have as many.

        Raises:
            InputError: There are fewer batches than processes.
        """
        world = self.accelerator.num_processes
        count = len(batches) // world
        if not count:
            raise InputError(
                f"{len(self.data)} training images make {len(batches)} batches for {world} processes: expected one "
                "each at least. Lower batch_size"
            )
        return batches[: count * world][self.accelerator.process_index :: world]

    def epoch_batches(self, batches: list[list[int]]) -> Iterator[Batch]:
        """Yield what is left of the current epoch, augmented; `learn` is to be called for each.

        Args:
            batches: This process's in the whole epoch, as positions in the training set.

        Raises:
            InputError: An image cannot be read.
        """
        self._batches = len(batches)
        return self._loader.epoch(self.epoch, batches[self.batch :])

    def learn(self, batch: Batch, step: Callable[[Trainer, Batch], dict[str, Tensor]]) -> None:
        """Learn from one batch; random numbers depend on seed, epoch, batch and process only.

        Args:
            batch: From `epoch_batches`.
            step: The recipe's; returns what is averaged over the epoch's images, scalars by name.
        """
        self.model.train()
        for module in self.inner.modules() if self.config.freeze_bn else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        for module in self._frozen:
            module.training = False
        size = self.config.accumulate
        first = self.batch // size * size
        self._group = min(size, self._batches - first)
        self.between_updates = self.batch + 1 == first + self._group
        steps = -(-self._batches // size)
        factor = rate_factor(self.epoch * steps + self.batch // size, steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        numbers = (self.config.seed, self.epoch, self.batch, self.accelerator.process_index)
        placed = self._placed(batch)
        if "cutmix" in self.config.augment:
            with seeded(*numbers, _CUTMIX):
                mixed = cutmix(placed.images, placed.labels, self.classes, self.config.cutmix_alpha)
                placed.images, placed.labels = mixed
        apart = contextlib.nullcontext() if self.between_updates else self.accelerator.no_sync(self.model)
        with seeded(*numbers, _MODEL), apart:
            if self.device.type == "cuda":
                torch.cuda.manual_seed(int(torch.randint(2**62, ()).item()))
            values = step(self, placed)
        if self.between_updates:
            self.updates += 1
            if self.averaged is not None:
                self.averaged.update_parameters(self._whole)
        for name, value in {**values, "images": torch.ones((), device=self.device)}.items():
            weighted = value.detach().to(torch.float64) * len(batch.indices)
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self.batch += 1

    def means(self, end: bool = False) -> dict[str, float]:
        """Return the means over this process's images since the epoch began, by name.

        Args:
            end: Whether the epoch is over: the means are of all processes' images then, and weights are checked too,
                since the last update of an epoch shows in no loss.

        Raises:
            ModelError: One is not a number, or a weight.
        """
        reduce = self.accelerator.reduce
        sums = {name: float(reduce(value, "sum") if end else value) for name, value in self._sums.items()}
        count = sums.pop("images")
        means = {name: value / count for name, value in sums.items()}
        problems = [f"the {name} is {value}" for name, value in means.items() if not math.isfinite(value)]
        for name, value in self.inner.named_parameters() if end else ():
            if not torch.isfinite(value).all():
                problems.append(f"the weights {name} are not all finite")
        if problems:
            raise ModelError(
                f"{problems[0]} in epoch {self.epoch + 1} by batch {self.batch}: expected finite numbers. Lower lr (it "
                f"is {self.config.lr:g}), or give warmup or clip_grad; the checkpoint before it is unharmed"
            )
        return means

    def next_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.batch, self._sums = self.epoch + 1, 0, {}

    def trained(self) -> nn.Module:
        """Return the module as it stands, in eval mode; its moving average where there is one."""
        chosen: nn.Module = self._whole if self.averaged is None else self.averaged.module
        return chosen.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, but for the recipe's own state."""
        scaler = self.accelerator.scaler
        return {
            "model": self.inner.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "sums": self._sums,
            "place": [self.epoch, self.batch, self.updates],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.inner.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._sums = dict(state["sums"])
        self.epoch, self.batch, self.updates = state["place"]

    def _freeze(
        self, name: str, images: Images, cache: Path | None, shown: bool
    ) -> tuple[Sequence[nn.Module], nn.Module, Dataset[Any]]:
        """Return the modules that stay as they are, what is trained, and what it is trained on."""
        layer, whole = layer_of(self._whole, name), self._whole
        example = images.tensor(0, 0)[None].to(self.device)
        frozen = freeze(whole, layer, example)
        for other in whole.children() if isinstance(whole, HeadedModel) else ():
            if isinstance(other, HeadedModel):  # a second network, which learns beside the first
                frozen += freeze(other, layer_of(other, name), example)
        if cache is None:
            return frozen, whole, images
        first, rest = split(whole.eval(), layer, example)
        settings = {key: value for key, value in self.config.to_dict().items() if key in _VIEWED}
        settings["augment"] = [name for name in self.config.augment if name != "cutmix"]  # which mixes what was kept
        about = {**settings, **self.data.fingerprint(), "preprocess": repr(self.preprocess)}
        with self.accelerator.main_process_first():
            kept = kept_features(
                cache, first, layer, images, about, device=self.device, batch_size=self.config.batch_size,
                shown=shown,
            )  # fmt: skip
        return (), rest, kept

    def _drawn(self, batch: Batch, values: Tensor) -> Iterator[Tensor]:
        """Yield each image's value while torch draws what its augmentation drew."""
        for position, value in zip(batch.indices.tolist(), values.cpu(), strict=True):
            with self._images.seeded(self._images.view(self.epoch, position), position):
                yield value

    def _step(self) -> None:
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.inner.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _placed(self, batch: Batch) -> Batch:
        on = {"device": self.device, "non_blocking": True}
        return Batch(batch.images.to(**on), batch.labels.to(**on), batch.indices)


def channels_last(model: nn.Module) -> nn.Module:
    """Lay a model's convolutions out by positions, in place: convolutions of CPUs and GPUs are faster then."""
    if all(parameter.dim() < 5 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@contextlib.contextmanager
def accelerated(mixed_precision: str, device: str | None) -> Iterator[Accelerator]:
    """Give an accelerator; what `accelerate` remembers of it is forgotten afterwards, unless the caller uses it too.

    Args:
        mixed_precision: "no", "bf16", "fp16"; "auto" for the caller's own accelerator's, or bf16 on a CPU that computes
            in it, else no.
        device: "cpu"; None, "auto" or "cuda" for a GPU where there is one.

    Raises:
        InputError: There is no such device, or it lacks the precision; or the caller's own accelerator has another.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState, GradientState, is_initialized

    if device not in (None, "auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device={device!r}: expected cpu, or cuda or auto with a GPU. Say cpu")
    shared, began = is_initialized(), bool(PartialState._shared_state)
    precision: str | None = mixed_precision
    if mixed_precision == "auto":
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        precision = None if shared else "bf16" if on_cpu and has_bf16(torch.device("cpu")) else "no"
    try:
        try:
            accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
        except ValueError as error:
            raise InputError(
                f"mixed_precision={mixed_precision!r} cannot be had here: {error}. Say no, or change the caller's own"
            ) from error
        yield accelerator
    finally:
        if not shared:
            AcceleratorState._reset_state(not began and not torch.distributed.is_initialized())
            GradientState._reset_state()
