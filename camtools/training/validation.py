"""How good the model is after an epoch: its classes, and its maps by `camtools.evaluate`, in numbers and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from camtools.classes.matching import match_classes
from camtools.datasets.selection import Selection
from camtools.errors import InputError
from camtools.evaluation import METRICS
from camtools.evaluation.evaluator import evaluate
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.rows import Array, Rows
from camtools.explainer import Explainer
from camtools.images.preprocess import Preprocess
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import named_pipelines
from camtools.plot import compare
from camtools.training.config import TrainConfig

ACCURACY, LOSS, LAST = "accuracy", "loss", "last"
_SHOWN = ("MaxBoxAccV2", "GT-known@own", "PxAP", "LocalizationMAP", "PointingMAP")
_HEIGHT = 160  # of drawn maps, pixels


@dataclass(frozen=True)
class Validation:
    """Measures a model on the validation set.

    Attributes:
        data: What `camtools.evaluate` takes.
        pipelines: "cam" and the recipe's own, by name.
        config: Settings.
        preprocess: The model's.
        class_names: The model's.
        multilabel: Whether scores are sigmoids.
    """

    data: Any
    pipelines: dict[str, Pipeline]
    config: TrainConfig
    preprocess: Preprocess
    class_names: Sequence[str]
    multilabel: bool

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return metrics by name, per cent: "val_accuracy" and "PIPELINE/METRIC".

        The accuracy is the share of images whose likeliest class is one of theirs.

        Args:
            model: The model, unwrapped; it is left as it was.

        Raises:
            InputError: `config.best` names a metric that the data has no truth for.
        """
        result = evaluate(
            model,
            self.data,
            self.pipelines,
            protocol=self.config.protocol,  # type: ignore[arg-type]  # checked by the config
            limit=self.config.val_limit,
            batch_size=self.config.batch_size,
            transform=self.preprocess,
            class_names=self.class_names,
            activation="sigmoid" if self.multilabel else "softmax",
            bootstrap=0,
            progress=False,
        )
        row = {"val_accuracy": 100 * float(top1_hits(result.rows, np.unique(result.rows.index)).mean())}
        shown = {*_SHOWN, self.config.best}
        for name, metrics in result.metrics.items():
            row |= {f"{name}/{metric}": value.value for metric, value in metrics.items() if metric in shown}
        self.judge(row)
        return row

    def judge(self, row: dict[str, float]) -> float:
        """Return the number by which the best epoch is chosen.

        Raises:
            InputError: The data has no truth for it.
        """
        best = self.config.best
        key = f"{list(self.pipelines)[-1]}/{best}" if best in METRICS else "val_accuracy"
        if key not in row:
            known = ", ".join(sorted({name.partition("/")[2] for name in row if "/" in name}))
            raise InputError(f"best={best!r}: the validation set has no truth for it, only for {known or 'classes'}")
        return row[key]

    def before_and_after(self, before: nn.Module, after: nn.Module) -> Image.Image | None:
        """Draw the true class's map of images spread over the data: one row per image, one column per pipeline.

        Args:
            before: The model that training began with; its map is a plain CAM.
            after: The trained model.

        Returns:
            None where none of the images has a class.
        """
        data, count = Selection(self.data), self.config.examples
        match = match_classes(data.classes, data.occurring, len(self.class_names), self.class_names)
        chosen = data.indices[:: max(1, len(data) // max(1, count))][:count]
        records = [record for record in map(data.record, chosen) if len(record.labels)]
        if not records:
            return None
        transform = Protocol.of(self.config.protocol, self.preprocess).transform
        images, targets = [record.image for record in records], [match.index[record.label] for record in records]
        columns = [("before: cam", before, self.pipelines["cam"])]
        columns += [(f"after: {name}", after, pipeline) for name, pipeline in self.pipelines.items()]
        maps: list[Any] = []
        for _, model, pipeline in columns:
            explainer = Explainer(model, pipeline, transform=transform, class_names=self.class_names)
            maps.append(explainer(images, target=targets))
        truth = [record.boxes if len(record.boxes) else None for record in records]
        rows = [list(row) for row in zip(*maps, strict=True)]
        return compare(rows, titles=[title for title, _, _ in columns], truth=truth, height=_HEIGHT, image=True)


def read_pipelines(name: str, pipeline: Any) -> dict[str, Pipeline]:
    """Return "cam" and, where it is another, the recipe's pipeline under the recipe's name, last."""
    cam, own = named_pipelines("cam"), list(named_pipelines(pipeline).values())[-1]
    return cam if own.summary == cam["cam"].summary else {**cam, name: own}


def check_best(best: str, validated: bool) -> None:
    """Check the choice before anything is trained.

    Args:
        best: `TrainConfig.best`.
        validated: Whether there is a validation set.

    Raises:
        InputError: It is unknown, or needs a validation set.
    """
    if best not in (ACCURACY, LOSS, LAST, *METRICS):
        raise InputError(f"best={best!r}: expected {ACCURACY}, {LOSS}, {LAST}, or one of {', '.join(METRICS)}")
    if best in METRICS and not validated:
        raise InputError(f"best={best!r} needs a validation set: expected one. Give val_set (--val), or best='last'")


def top1_hits(rows: Rows, images: Array) -> Array:
    """Return whether each image's likeliest class is one of its own.

    Args:
        rows: Measured with a classifier.
        images: Index of every image in the data set, ascending, (N,).

    Returns:
        (N,) bool.
    """
    assert rows.rank is not None
    hits = np.zeros(len(images), dtype=bool)
    np.logical_or.at(hits, np.searchsorted(images, rows.index), rows.rank == 0)
    return hits
