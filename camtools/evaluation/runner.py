"""One forward per image for all pipelines: images read ahead, batches scored beside the next forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from camtools.classes.matching import ClassMap
from camtools.datasets.selection import Selection
from camtools.engine import Sizes
from camtools.errors import CamtoolsError, ModelError
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.sample import Sample, prepare
from camtools.evaluation.scores import Arrays, own_rows, ranked_rows, score_rows
from camtools.model.activations import Activations
from camtools.model.cam_model import CamModel, unwrapped
from camtools.model.device import to_model
from camtools.model.guard import untouched
from camtools.model.outputs import probabilities
from camtools.pipeline.pipeline import Pipeline
from camtools.steps import State

Failure = tuple[int, str, str]
"""Index, id and error of an image that could not be evaluated."""


_TOGETHER = 8  # images whose maps are resized and scored at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Pass:
    """One forward; B images.

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


@dataclass(frozen=True)
class Measure:
    """Turns forwards into tables.

    Attributes:
        pipelines: In the order of the tables' second axis.
        protocol: How maps become score maps.
        masks: Whether the data set has masks.
        multilabel: Whether the maps of all classes are ranked detections as well.
        activation: How logits become scores.
    """

    pipelines: tuple[Pipeline, ...]
    protocol: Protocol
    masks: bool = False
    multilabel: bool = False
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def needs_image(self) -> bool:
        """Whether any pipeline looks at the images."""
        return any(pipeline.needs_image for pipeline in self.pipelines)

    def __call__(self, passes: Sequence[Pass], failed: Sequence[Failure]) -> Arrays:
        """Return what was measured in a batch, as `camtools.evaluation.store` keeps it.

        Args:
            passes: The batch's forwards, more than one where inputs differ in size.
            failed: Images that could not be read.
        """
        tables = known_rows([sample for one in passes for sample in one.samples], failed)
        parts = [self._of_pass(one) for one in passes]
        for name in parts[0] if parts else ():
            tables[name] = np.concatenate([part[name] for part in parts])
        return tables if parts else tables | self._nothing()

    def _of_pass(self, one: Pass) -> Arrays:
        tables = classifier_rows(one, self.activation)
        probability = probabilities(one.logits, self.activation).cpu()
        found = [self._of_pipeline(*pair, one, probability) for pair in zip(self.pipelines, one.states, strict=True)]
        for name in found[0]:
            if name.startswith("rows/"):
                tables[name] = np.stack([each[name] for each in found], 1)
            else:
                table, _, column = name.partition("/")
                tables |= {f"{table}{number}/{column}": each[name] for number, each in enumerate(found)}
        return tables

    def _of_pipeline(self, pipeline: Pipeline, state: State, one: Pass, probability: Tensor) -> Arrays:
        """Measure one pipeline on a batch, a few images of one geometry at a time."""
        starts = np.cumsum([0, *(len(sample.truths) for sample in one.samples)])
        parts: list[Arrays] = []
        detected: list[Arrays] = []
        order: list[int] = []
        with torch.no_grad():
            for members in self.protocol.parts([sample.geometry for sample in one.samples], _TOGETHER):
                samples = [one.samples[b] for b in members]
                images = [sample.image for sample in samples if sample.image is not None]
                done = self.protocol.project(pipeline, _take(state, members), samples[0].geometry, images)
                targets = one.targets[members]
                pairs = [(sample, truth) for sample in samples for truth in sample.truths]
                rows = [b for b, sample in enumerate(samples) for _ in sample.truths]
                own = [targets[b].tolist().index(pair[1].label) for b, pair in zip(rows, pairs, strict=True)]
                found = score_rows(done.scores[rows, own], pairs, masks=self.masks)
                found |= own_rows(done.masks[rows, own], done.thresholds[rows, own], pairs, has_masks=self.masks)
                parts.append(found)
                order += [row for b in members for row in range(starts[b], starts[b + 1])]
                if self.multilabel:
                    each = zip(done.scores, done.masks, samples, targets, probability[members], strict=True)
                    detected += [ranked_rows(s, m, sample, t, p[t]) for s, m, sample, t, p in each]
        back = np.argsort(order) if order else np.zeros(0, dtype=np.int64)
        out = {f"rows/{name}": np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
        return out | {name: np.concatenate([part[name] for part in detected]) for name in (detected or [{}])[0]}

    def _nothing(self) -> Arrays:
        """Return the tables of a batch of which no image could be read: without rows, but with every column."""
        scores, none = torch.zeros((0, 224, 224), dtype=torch.float64), torch.zeros((0, 224, 224), dtype=torch.bool)
        found = score_rows(scores, [], masks=self.masks)
        found |= own_rows(none, torch.zeros(0), [], has_masks=self.masks)
        count = len(self.pipelines)
        out: Arrays = {f"rows/{k}": np.repeat(v[:, None], count, 1) for k, v in found.items()}
        out |= {"rows/rank": np.zeros(0, dtype=np.int64), "rows/score": np.zeros(0, dtype=np.float32)}
        if self.multilabel:
            kinds = {"index": np.int64, "label": np.int64, "score": np.float32, "correct": np.bool_}
            for kind in ("boxes", "points"):
                for number in range(count):
                    out |= {f"{kind}{number}/{key}": np.zeros(0, dtype=dtype) for key, dtype in kinds.items()}
                    out |= {f"true_{kind}{number}/{key}": np.zeros(0, dtype=np.int64) for key in ("index", "label")}
        return out


def known_rows(samples: Sequence[Sample], failed: Sequence[Failure]) -> Arrays:
    """Return the tables that do not depend on any map: images done and failed, rows and true boxes."""
    pairs = [(sample, truth) for sample in samples for truth in sample.truths]
    boxes = [truth.boxes.float().numpy() for _, truth in pairs]
    counts = np.array([len(box) for box in boxes], dtype=np.int64)
    index = np.array([sample.index for sample, _ in pairs], dtype=np.int64)
    return {
        "done/index": np.array([sample.index for sample in samples], dtype=np.int64),
        "failed/index": np.array([index for index, _, _ in failed], dtype=np.int64),
        "failed/id": np.array([name for _, name, _ in failed], dtype=np.str_),
        "failed/error": np.array([error for _, _, error in failed], dtype=np.str_),
        "rows/index": index,
        "rows/id": np.array([sample.id for sample, _ in pairs], dtype=np.str_),
        "rows/label": np.array([truth.label for _, truth in pairs], dtype=np.int64),
        "rows/name": np.array([truth.name for _, truth in pairs], dtype=np.str_),
        "rows/size": np.array([sample.size for sample, _ in pairs], dtype=np.int64).reshape(-1, 2),
        "rows/truths": counts,
        "truth/index": np.repeat(index, counts),
        "truth/box": np.concatenate([*boxes, np.zeros((0, 4), dtype=np.float32)]),
    }


def classifier_rows(one: Pass, activation: Any) -> Arrays:
    """Return each row's rank among the logits, lower indices first of equals, and its class's probability."""
    owners = [b for b, sample in enumerate(one.samples) for _ in sample.truths]
    labels = torch.tensor([truth.label for sample in one.samples for truth in sample.truths], dtype=torch.int64)
    logits, score = one.logits.cpu()[owners], probabilities(one.logits, activation).cpu()[owners]
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(1)
    return {"rows/rank": rank.numpy(), "rows/score": score.gather(1, labels[:, None])[:, 0].float().numpy()}


def _take(state: State, members: list[int]) -> State:
    """Return the state of some of the images; weights of one row are all images'."""
    changes: dict[str, Any] = {"stages": state.stages and tuple(one[members] for one in state.stages)}
    for name in ("features", "weights", "maps", "raw_maps", "labels"):
        value = getattr(state, name)
        changes[name] = value if value is None or (name == "weights" and len(value) == 1) else value[members]
    return state.replace(**changes)


_SCORED_BESIDE = 2  # batches

Read = tuple[list[Sample], list[Failure]]


@dataclass(frozen=True)
class Runner:
    """Evaluates batches of one data set with one model.

    Attributes:
        model: The classifier, in place on its device.
        data: The images.
        classes: From the data set's classes to the model's.
        measure: What turns maps into tables; it knows the pipelines and the protocol.
        workers: Threads that read images.
    """

    model: CamModel
    data: Selection
    classes: ClassMap
    measure: Measure
    workers: int = 4

    def over(self, chunks: Sequence[list[int]], keep: Callable[[Arrays], None], tick: Callable[[int], None]) -> None:
        """Evaluate images batch by batch.

        Args:
            chunks: Indices of images in the data set, a list a batch.
            keep: Takes every finished batch.
            tick: Told after each how many images it had.

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
        """Yield the batches' images; those of the next batch are read meanwhile."""
        ahead: list[list[Future[Sample]]] = [[pool.submit(self._sample, index) for index in c] for c in chunks[:2]]
        for number, chunk in enumerate(chunks):
            futures = ahead.pop(0)
            samples, failed = [], []
            for index, future in zip(chunk, futures, strict=True):
                try:
                    samples.append(future.result())
                except Exception as error:  # whatever a data set raises: this image's trouble, not the run's
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
                f"The device ran out of memory with {len(x)} images per forward: give a smaller batch_size."
            ) from error

    def _targets(self, samples: list[Sample]) -> Tensor:
        """Return the classes whose maps are made, (B, K'): all of multi-label data, else each image's own."""
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
