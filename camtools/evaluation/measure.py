"""From a batch's maps to its tables: every pipeline projected onto the pictures and measured against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from camtools.evaluation.protocol import Protocol
from camtools.evaluation.sample import Sample
from camtools.evaluation.scores import Arrays, own_rows, ranked_rows, score_rows
from camtools.explanation import probabilities
from camtools.pipeline import Pipeline
from camtools.steps import State

Failure = tuple[int, str, str]
"""Index, id and error of a picture that could not be evaluated."""

_TOGETHER = 8  # pictures whose maps are resized and scored at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Pass:
    """One forward; B pictures.

    Attributes:
        samples: The pictures.
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
        """Whether any pipeline looks at the pictures."""
        return any(pipeline.needs_image for pipeline in self.pipelines)

    def __call__(self, passes: Sequence[Pass], failed: Sequence[Failure]) -> Arrays:
        """Return what was measured in a batch, as `camtools.evaluation.store` keeps it.

        Args:
            passes: The batch's forwards, more than one where inputs differ in size.
            failed: Pictures that could not be read.
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
        """Measure one pipeline on a batch, a few pictures of one geometry at a time."""
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
        """Return the tables of a batch of which no picture could be read: without rows, but with every column."""
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
    """Return the tables that do not depend on any map: pictures done and failed, rows and true boxes."""
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
    """Return the state of some of the pictures; weights of one row are all pictures'."""
    changes: dict[str, Any] = {"stages": state.stages and tuple(one[members] for one in state.stages)}
    for name in ("features", "weights", "maps", "raw_maps", "labels"):
        value = getattr(state, name)
        changes[name] = value if value is None or (name == "weights" and len(value) == 1) else value[members]
    return state.replace(**changes)
