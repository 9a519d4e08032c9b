"""The loop: batches, precision, updates and the moving average, on whatever devices `accelerate` finds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from camtools.errors import InputError, ModelError
from camtools.progress import Advance
from camtools.training.augment import cutmix, plain_transform, seeded, training_transform
from camtools.training.data import Batch, Loader, TrainingSet
from camtools.training.optimizer import build_optimizer, rate_factor
from camtools.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from camtools.images.preprocess import Preprocess


_CUTMIX, _MODEL = 1_000_003, 1_000_033  # so that streams of random numbers differ from the images' own
_MOST_WORKERS = 8

Report = Callable[[int, dict[str, float]], None]


class Trainer:
    """One fine-tune under way; what recipes get to see.

    Args:
        recipe: The method.
        model: What it built, on any device; trained in place.
        data: Images and labels.
        classes: K.
        shares: Whether labels are (B, K) shares.
        preprocess: The model's.
        accelerator: Knows devices, processes and precision.

    Attributes:
        model: The model to call: compiled, distributed, in mixed precision.
        inner: The module inside, for everything else.
        config: The recipe's settings.
        device: Where both are.
        epoch: From 0.
        batch: Batches of this process that are done in this epoch.
        updates: Batches' updates since the start, over all epochs.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: TrainingSet,
        classes: int,
        shares: bool,
        preprocess: Preprocess,
        accelerator: Accelerator,
    ) -> None:
        config = recipe.config
        self.recipe, self.config, self.data, self.classes, self.shares = recipe, config, data, classes, shares
        self.preprocess, self.accelerator, self.device = preprocess, accelerator, accelerator.device
        self.inner = model.to(self.device)
        fast = recipe.fast_parameters(self.inner)
        self.averaged = (
            AveragedModel(self.inner, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        optimizer = build_optimizer(self.inner, fast, config)
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
        made: Any = torch.compile(self.inner) if config.compile else self.inner
        self.model: nn.Module = accelerator.prepare_model(made)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)
        gpu = self.device.type == "cuda"
        self._loader = Loader(
            data, training_transform(config, preprocess), classes, shares, config.seed, self._workers(), gpu
        )
        self.epoch = self.batch = self.updates = 0
        self.sums: dict[str, Tensor] = {}
        self._share, self._closing, self._steps = 1, True, 1

    def precision(self) -> Any:
        """Return the context in which forwards run: autocast where mixed precision is asked for."""
        return self.accelerator.autocast()

    def update(self, loss: Tensor) -> None:
        """Follow a loss's gradients one step; with `accumulate`, the last batch of a group takes the step.

        Args:
            loss: Scalar, from a forward of `model`.
        """
        self.accelerator.backward(loss / self._share)
        if self._closing:
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
            several = self.accelerator.num_processes > 1
            parameter.grad = self.accelerator.reduce(gradient, "mean") if several else gradient
        self._step()

    def plain_batches(self, size: int | None = None) -> Iterator[Batch]:
        """Yield this process's share of the training images once, in order and without augmentation.

        Args:
            size: Images in a batch; None for the settings' `batch_size`.
        """
        positions = list(range(len(self.data)))[self.accelerator.process_index :: self.accelerator.num_processes]
        step = size or self.config.batch_size
        transform = plain_transform(self.config, self.preprocess)
        loader = Loader(self.data, transform, self.classes, self.shares, self.config.seed, 0, False)
        for batch in loader.epoch(0, [positions[i : i + step] for i in range(0, len(positions), step)]):
            yield self._placed(batch)

    def run_epoch(self, report: Report, advance: Advance, save: Callable[[], None]) -> dict[str, float]:
        """Train on what is left of the current epoch.

        Args:
            report: Given means since the epoch began, every `log_every` batches, with the number of updates so far.
            advance: Moves a progress bar on.
            save: Called every `save_every` batches.

        Returns:
            The epoch's means.

        Raises:
            ModelError: The loss is not a number.
            InputError: An image cannot be read, or there is no batch for every process.
        """
        mine = self.own_batches()
        self._steps, due = self.steps(len(mine)), False
        for batch in self._loader.epoch(self.epoch, mine[self.batch :]):
            self._train(batch, len(mine))
            self.batch += 1
            words = ""
            if self.batch % self.config.log_every == 0:
                means = self._means(self.sums)
                words = f"loss {means['loss']:.3f}"
                report(self.updates, means)
            advance(len(batch.indices) * self.accelerator.num_processes, words)
            due = due or bool(self.config.save_every and self.batch % self.config.save_every == 0)
            if due and self._closing and self.batch < len(mine):  # gradients of half a group are in no checkpoint
                self._means(self.sums)  # refuses to keep what is not a number
                save()
                due = False
        means = self._means({name: self._total(value) for name, value in self.sums.items()})
        self._finite()
        self.recipe.after_epoch(self)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, {}
        return means

    def own_batches(self) -> list[list[int]]:
        """Return this process's batches of the epoch; all processes have as many.

        Raises:
            InputError: There are fewer batches than processes.
        """
        batches = self.recipe.batches(self.data.labels, self.epoch)
        world = self.accelerator.num_processes
        count = len(batches) // world
        if not count:
            raise InputError(
                f"{len(self.data)} training images make {len(batches)} batches for {world} processes: expected one "
                "each at least. Lower batch_size"
            )
        return batches[: count * world][self.accelerator.process_index :: world]

    def steps(self, batches: int) -> int:
        """Return how many updates so many batches make."""
        return -(-batches // self.config.accumulate)

    def rates(self) -> list[float]:
        """Return the learning rates of the optimiser's groups: the backbone's, then the classifier's."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def result(self) -> nn.Module:
        """Return the model that the recipe hands out, in eval mode: the moving average where there is one."""
        plain = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)
        chosen = self.averaged.module if self.averaged is not None else getattr(plain, "_orig_mod", plain)
        return self.recipe.finished(chosen.eval())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        scaler = self.accelerator.scaler
        return {
            "model": self.inner.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "recipe": self.recipe.state_dict(),
            "sums": self.sums,
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
        self.recipe.load_state_dict(state["recipe"])
        self.sums = dict(state["sums"])
        self.epoch, self.batch, self.updates = state["place"]

    def _train(self, batch: Batch, count: int) -> None:
        """Let the recipe learn from one batch; random numbers depend on seed, epoch, batch and process only."""
        self._training_mode()
        size = self.config.accumulate
        first = self.batch // size * size
        self._share = min(size, count - first)
        self._closing = self.batch + 1 == min(first + size, count)
        factor = rate_factor(self.epoch * self._steps + self.batch // size, self._steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        where = (self.config.seed, self.epoch, self.batch, self.accelerator.process_index)
        placed = self._placed(batch)
        if "cutmix" in self.config.augment:
            with seeded(*where, _CUTMIX):
                placed.images, placed.labels = cutmix(
                    placed.images, placed.labels, self.classes, self.config.cutmix_alpha
                )
        apart = contextlib.nullcontext() if self._closing else self.accelerator.no_sync(self.model)
        with seeded(*where, _MODEL), apart:
            if self.device.type == "cuda":
                torch.cuda.manual_seed(int(torch.randint(2**62, ()).item()))
            found = self.recipe.step(self, placed)
        if self._closing:
            self.updates += 1
            if self.averaged is not None:
                self.averaged.update_parameters(self.inner)
        for name, value in {**found, "images": torch.ones((), device=self.device)}.items():
            weighted = value.detach().to(torch.float64) * len(batch.indices)
            self.sums[name] = self.sums[name] + weighted if name in self.sums else weighted

    def _step(self) -> None:
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.inner.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _training_mode(self) -> None:
        self.model.train()
        if self.config.freeze_bn:
            for module in self.inner.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _placed(self, batch: Batch) -> Batch:
        on = {"device": self.device, "non_blocking": True}
        return Batch(batch.images.to(**on), batch.labels.to(**on), batch.indices)

    def _total(self, value: Tensor) -> Tensor:
        several = self.accelerator.num_processes > 1
        return self.accelerator.reduce(value, "sum") if several else value

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return means over images.

        Raises:
            ModelError: One is not a number.
        """
        count = float(sums["images"])
        found = {name: float(value) / count for name, value in sums.items() if name != "images"}
        bad = next((name for name, value in found.items() if not torch.isfinite(torch.tensor(value))), None)
        if bad is not None:
            raise self._diverged(f"the {bad} is {found[bad]}")
        return found

    def _finite(self) -> None:
        """Refuse weights that are not numbers: the last update of an epoch shows in no loss.

        Raises:
            ModelError: Some are.
        """
        bad = next((name for name, value in self.inner.named_parameters() if not torch.isfinite(value).all()), None)
        if bad is not None:
            raise self._diverged(f"the weights {bad} are not all finite")

    def _diverged(self, words: str) -> ModelError:
        return ModelError(
            f"{words} in epoch {self.epoch + 1} by batch {self.batch}: expected finite numbers. Lower lr (it is "
            f"{self.config.lr:g}), or give warmup or clip_grad; the checkpoint before it is unharmed"
        )

    def _workers(self) -> int:
        if self.config.workers is not None:
            return int(self.config.workers)
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(_MOST_WORKERS, cores) if self.device.type == "cuda" else 0


@contextmanager
def accelerated(mixed_precision: str, device: str | None) -> Iterator[Accelerator]:
    """Give an accelerator; what `accelerate` remembers of it is forgotten afterwards, unless the caller uses it too.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        device: "cpu"; None, "auto" or "cuda" for a GPU where there is one.

    Raises:
        InputError: There is no such device, or it lacks the precision; or the caller's own accelerator has another.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if device not in (None, "auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"device={device!r}: expected cpu, or cuda or auto with a GPU. Say cpu")
    shared = bool(AcceleratorState._shared_state)
    began = bool(PartialState._shared_state)
    try:
        try:
            found = Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")
        except ValueError as error:
            raise InputError(
                f"mixed_precision={mixed_precision!r} cannot be had here: {error}. Say no, or change the caller's own"
            ) from error
        yield found
    finally:
        if not shared:
            AcceleratorState._reset_state(not began and not torch.distributed.is_initialized())
            GradientState._reset_state()
