"""The loop of an evaluation: images read ahead, one forward for all pipelines, scores beside the next forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camtools.classes.matching import ClassMap
from camtools.datasets.selection import Selection
from camtools.engine import Engine
from camtools.errors import CamtoolsError
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.rows import Detections, Ranked, Rows, join_detections
from camtools.evaluation.sample import Sample, prepare
from camtools.evaluation.scores import ranked_detections, score_rows, with_classifier, with_own
from camtools.evaluation.store import Failure, Shard
from camtools.images.batches import read_ahead
from camtools.model.outputs import Activation, probabilities
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import groups
from camtools.steps.base import State

_SCORED_BESIDE = 2  # batches
_TOGETHER = 8  # images whose maps are resized and scored at a time: they stay in the processor's cache


class Runner(ABC):
    """Evaluates batches of one data set.

    Args:
        data: The images.
        classes: From the data set's classes to the model's.
        names: Of the pipelines.
        settings: What the rows depend on.
        workers: Threads that read images.
    """

    def __init__(
        self, data: Selection, classes: ClassMap, names: Sequence[str], settings: dict[str, Any], workers: int
    ) -> None:
        self.data, self.classes, self.names, self.settings, self.workers = data, classes, names, settings, workers

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return an image of the data set, ready; called in several threads."""

    @abstractmethod
    def forward(self, images: list[Any]) -> Any:
        """Return what is to be scored of a batch; called in order."""

    @abstractmethod
    def score(self, passes: Any) -> Shard:
        """Return what was measured in what `forward` returned; called in a thread beside the next `forward`."""

    def over(self, chunks: Sequence[list[int]], keep: Callable[[Shard], None], tick: Callable[[int], None]) -> None:
        """Evaluate images batch by batch.

        Args:
            chunks: Indices of images in the data set, one list per batch.
            keep: Takes every finished batch.
            tick: Told after each how many images it had.

        Raises:
            ModelError: The model cannot be explained, or its scores are not numbers.
        """
        ahead = 2 * max(map(len, chunks), default=0)
        pending: deque[Future[Shard]] = deque()

        def finish(most: int) -> None:
            while len(pending) > most:
                shard = pending.popleft().result()
                keep(shard)
                tick(len(shard.done) + len(shard.failed))

        with closing(read_ahead(self.read, chain(*chunks), self.workers, ahead)) as images:
            scorer = ThreadPoolExecutor(1)
            try:
                for chunk in chunks:
                    ready, failed = [], []
                    for index, image in zip(chunk, images, strict=False):
                        if isinstance(image, Exception):  # whatever a data set raises: this image's trouble, not ours
                            failed.append((index, self.data.id_of(index), _words(image)))
                        else:
                            ready.append(image)
                    pending.append(scorer.submit(self._scored, self.forward(ready) if ready else None, failed))
                    finish(_SCORED_BESIDE)
                finish(0)
            finally:
                scorer.shutdown(wait=True, cancel_futures=True)

    def _scored(self, passes: Any, failed: list[Failure]) -> Shard:
        return Shard([], failed) if passes is None else replace(self.score(passes), failed=failed)


def _words(error: Exception) -> str:
    kind = "" if isinstance(error, CamtoolsError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


@dataclass(frozen=True)
class Pass:
    """One forward; B images of one input size.

    Attributes:
        samples: The images.
        states: For each pipeline the state after its steps on the feature grid, maps (B, K', h, w).
        logits: (B, K) float32.
        targets: The classes of the maps, (B, K') int64 on the CPU.
    """

    samples: list[Sample]
    states: list[State]
    logits: Tensor
    targets: Tensor


class ModelRunner(Runner):
    """Evaluates the maps that pipelines make of a model's features.

    Args:
        engine: The model and the pipelines.
        protocol: How images become inputs and maps become score maps.
        activation: How logits become scores.
        masks: Whether the data set has masks.
        multilabel: Whether the maps of all classes are ranked detections as well.
        *rest: Those of `Runner`.
    """

    def __init__(
        self,
        engine: Engine,
        protocol: Protocol,
        activation: Activation,
        masks: bool,
        multilabel: bool,
        *rest: Any,
    ) -> None:
        super().__init__(*rest)
        self.engine, self.protocol, self.activation = engine, protocol, activation
        self.masks, self.multilabel = masks, multilabel
        self.needs_image = any(pipeline.needs_image for pipeline in engine.pipelines)

    def read(self, index: int) -> Sample:
        """Return an image with its inputs and truth."""
        record, transform = self.data.record(index), self.protocol.transform
        kept, scales = self.needs_image, self.engine.scales
        return prepare(record, index, self.classes, transform, keep_image=kept, scales=scales)

    def forward(self, images: list[Sample]) -> list[Pass]:
        """Run the model and the pipelines' steps on the feature grid, once per input size."""
        return [self._pass(list(same)) for _, same in groupby(images, lambda sample: _input(sample).shape)]

    def _pass(self, samples: list[Sample]) -> Pass:
        larger = {scale: torch.stack([sample.larger[scale] for sample in samples]) for scale in self.engine.scales}
        inputs = torch.stack([_input(sample) for sample in samples])
        forward = self.engine.forward(inputs, larger, [sample.id for sample in samples])
        targets = self._targets(samples)
        return Pass(samples, self.engine.maps(forward, targets), forward.logits.detach().float(), targets)

    def _targets(self, samples: list[Sample]) -> Tensor:
        """Return the classes whose maps are made, (B, K'): all of multi-label data, else each image's own."""
        if self.multilabel:
            known = sorted({self.classes.index[label] for label in self.classes.known})
            return torch.tensor([known] * len(samples))
        lists = [[truth.label for truth in sample.truths] or [0] for sample in samples]
        most = max(map(len, lists))
        return torch.tensor([labels + labels[:1] * (most - len(labels)) for labels in lists])

    def score(self, passes: list[Pass]) -> Shard:
        """Measure every pipeline's maps and masks against the truth."""
        rows: list[Rows] = []
        detections: list[Detections] = []
        for batch in passes:
            logits, scores = batch.logits.cpu(), probabilities(batch.logits, self.activation).cpu()
            pairs = zip(self.engine.pipelines, batch.states, strict=True)
            measured = [self._measure(pipeline, state, batch, scores) for pipeline, state in pairs]
            owners = [b for b, sample in enumerate(batch.samples) for _ in sample.truths]
            if owners:
                stacked = Rows.stacked([part for part, _ in measured if part is not None])
                rows.append(with_classifier(stacked, logits[owners], scores[owners]))
            of_images = zip(*(ranked for _, ranked in measured), strict=True)
            detections += [dict(zip(self.names, of_image, strict=True)) for of_image in of_images]
        done = [sample.index for batch in passes for sample in batch.samples]
        return Shard(done, [], Rows.joined(rows) if rows else None, join_detections(detections, self.names))

    def _measure(
        self, pipeline: Pipeline, state: State, batch: Pass, scores: Tensor
    ) -> tuple[Rows | None, list[dict[str, Ranked]]]:
        """Measure one pipeline on a batch, a few images of one geometry at a time.

        Returns:
            The rows, in the samples' order, and of multi-label data each image's detections.
        """
        keys = [None if self.protocol.name == "wsol" else sample.geometry for sample in batch.samples]
        parts: list[Rows] = []
        detections: list[dict[str, Ranked]] = []
        for members in groups(keys, _TOGETHER):
            samples = [batch.samples[b] for b in members]
            images = [sample.image for sample in samples if sample.image is not None]
            done = self.protocol.project(pipeline, state, members, samples[0].geometry, images)
            targets = batch.targets[members]
            pairs = [(sample, truth) for sample in samples for truth in sample.truths]
            owners = [b for b, sample in enumerate(samples) for _ in sample.truths]
            own = [targets[b].tolist().index(truth.label) for b, (_, truth) in zip(owners, pairs, strict=True)]
            if pairs:
                rows = score_rows(done.scores[owners, own], pairs, masks=self.masks)
                boxes = [done.parts[b][k].boxes for b, k in zip(owners, own, strict=True)]
                parts.append(with_own(rows, done.masks[owners, own], boxes, done.thresholds[owners, own], pairs))
            if self.multilabel:
                each = zip(done.scores, done.parts, samples, targets, scores[members], strict=True)
                size = done.masks.shape[-2:]
                detections += [ranked_detections(s, found, size, sample, t, p[t]) for s, found, sample, t, p in each]
        if not parts:
            return None, detections
        place = {sample.index: b for b, sample in enumerate(batch.samples)}
        return Rows.joined(parts).pick(lambda index: np.argsort([place[i] for i in index], kind="stable")), detections


def _input(sample: Sample) -> Tensor:
    assert sample.tensor is not None  # the protocol has a transform
    return sample.tensor
