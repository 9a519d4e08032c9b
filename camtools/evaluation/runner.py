"""One forward a picture for all pipelines: pictures read ahead, batches scored beside the next forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from camtools.activations import Activations
from camtools.enlarging import Sizes
from camtools.errors import CamtoolsError, ModelError
from camtools.evaluation.classes import ClassMap
from camtools.evaluation.measure import Failure, Measure, Pass
from camtools.evaluation.sample import Sample, prepare
from camtools.evaluation.scores import Arrays
from camtools.evaluation.selection import Selection
from camtools.guard import untouched
from camtools.model import CamModel, unwrapped
from camtools.running import to_model
from camtools.steps import State

_SCORED_BESIDE = 2  # batches

Read = tuple[list[Sample], list[Failure]]


@dataclass(frozen=True)
class Runner:
    """Evaluates batches of one data set with one model.

    Attributes:
        model: The classifier, in place on its device.
        data: The pictures.
        classes: From the data set's classes to the model's.
        measure: What turns maps into tables; it knows the pipelines and the protocol.
        workers: Threads that read pictures.
    """

    model: CamModel
    data: Selection
    classes: ClassMap
    measure: Measure
    workers: int = 4

    def over(self, chunks: Sequence[list[int]], keep: Callable[[Arrays], None], tick: Callable[[int], None]) -> None:
        """Evaluate pictures batch by batch.

        Args:
            chunks: Indices of pictures in the data set, a list a batch.
            keep: Takes every finished batch.
            tick: Told after each how many pictures it had.

        Raises:
            ModelError: The model cannot be explained, or its scores are not numbers.
        """
        with ThreadPoolExecutor(self.workers) as readers, ThreadPoolExecutor(1) as scorer:
            pending: list[tuple[Future[Arrays], int]] = []
            try:
                for chunk, (samples, failed) in zip(chunks, self._read(chunks, readers), strict=True):
                    passes = [self._forward(list(same)) for _, same in groupby(samples, lambda one: _shape(one.tensor))]
                    pending.append((scorer.submit(self.measure, passes, failed), len(chunk)))
                    while len(pending) > _SCORED_BESIDE:
                        _finish(pending.pop(0), keep, tick)
                while pending:
                    _finish(pending.pop(0), keep, tick)
            finally:
                readers.shutdown(wait=True, cancel_futures=True)
                scorer.shutdown(wait=True, cancel_futures=True)

    def _read(self, chunks: Sequence[list[int]], pool: ThreadPoolExecutor) -> Iterator[Read]:
        """Yield the batches' pictures; those of the next batch are read meanwhile."""
        ahead: list[list[Future[Sample]]] = [[pool.submit(self._sample, index) for index in c] for c in chunks[:2]]
        for number, chunk in enumerate(chunks):
            futures = ahead.pop(0)
            samples, failed = [], []
            for index, future in zip(chunk, futures, strict=True):
                try:
                    samples.append(future.result())
                except Exception as error:  # whatever a data set raises: this picture's trouble, not the run's
                    kind = "" if isinstance(error, CamtoolsError) else f"{type(error).__name__}: "
                    failed.append((index, self.data.id_of(index), kind + " ".join(str(error).split())))
            if number + 2 < len(chunks):
                ahead.append([pool.submit(self._sample, index) for index in chunks[number + 2]])
            yield samples, failed

    def _sample(self, index: int) -> Sample:
        record = self.data.record(index)
        return prepare(
            record,
            index,
            self.classes,
            self.measure.protocol.transform,
            keep_image=self.measure.needs_image,
            scales=self._stages.keys() - {1.0},
        )

    def _forward(self, samples: list[Sample]) -> Pass:
        """Run the model once, and once more for every other size, and the pipelines' steps on the feature grid."""
        inner = unwrapped(self.model)
        x = to_model(torch.stack([one.tensor for one in samples if one.tensor is not None]), inner)
        with torch.inference_mode(False), torch.no_grad():
            inputs = {
                scale: torch.stack([one.larger[scale] for one in samples]) for scale in self._stages if scale != 1
            }
            taken = {scale: to_model(larger, inner) for scale, larger in inputs.items() if self._sizes.taken(larger)}
            own = max((count for scale, count in self._stages.items() if scale not in taken), default=0)
            with untouched(inner):
                found = self._activations(x, own)
                _check(found.logits, samples)
                targets = self._targets(samples)
                starts = {1.0: self._start(found, targets)}
                for scale, larger in taken.items():
                    starts[scale] = self._start(self._activations(larger, self._stages[scale]), targets)
            with torch.autocast(x.device.type, enabled=False):
                pipelines = self.measure.pipelines
                states = [pipeline.features(starts.get(pipeline.scale, starts[1.0])) for pipeline in pipelines]
        return Pass(samples, states, found.logits.detach().float(), targets)

    @cached_property
    def _stages(self) -> dict[float, int]:
        """How many earlier stages the pipelines look at, by the scale of the input that they want."""
        scales = {pipeline.scale for pipeline in self.measure.pipelines}
        return {s: max(p.needs_stages for p in self.measure.pipelines if p.scale == s) for s in sorted(scales)}

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self.model)

    def _start(self, found: Activations, targets: Tensor) -> State:
        """Return where pipelines start. Half precision has too few levels for a map: all is float32 from here on."""
        weights = found.weights(targets).detach().float()
        return State(found.features.detach().float(), weights, labels=targets, stages=found.stages)

    def _activations(self, x: Tensor, stages: int) -> Activations:
        try:
            return self.model.activations(x, stages)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"The device ran out of memory with {len(x)} pictures a forward: give a smaller batch_size."
            ) from error

    def _targets(self, samples: list[Sample]) -> Tensor:
        """Return the classes whose maps are made, (B, K'): all of multi-label data, else each picture's own."""
        if self.measure.multilabel:
            known = sorted({self.classes.index[label] for label in self.classes.known})
            return torch.tensor([known] * len(samples))
        lists = [[truth.label for truth in one.truths] or [0] for one in samples]
        most = max(map(len, lists))
        return torch.tensor([one + one[:1] * (most - len(one)) for one in lists])


def _finish(pending: tuple[Future[Arrays], int], keep: Callable[[Arrays], None], tick: Callable[[int], None]) -> None:
    future, count = pending
    keep(future.result())
    tick(count)


def _shape(tensor: Tensor | None) -> torch.Size:
    assert tensor is not None  # the protocol has a transform
    return tensor.shape


def _check(logits: Tensor, samples: list[Sample]) -> None:
    """Refuse scores that are not numbers."""
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten().tolist()
    if bad:
        raise ModelError(
            f"the model returned NaN or infinite class scores for {samples[bad[0]].id}. Check its weights; in float16 "
            "try bfloat16 or float32"
        )
