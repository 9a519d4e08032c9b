"""How good the model is after an epoch: its classes, and its maps by `camtools.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from camtools.datasets.selection import Selection
from camtools.errors import InputError
from camtools.evaluation import METRICS, EvaluationResult, evaluate
from camtools.evaluation.protocol import Protocol
from camtools.explainer import Explainer
from camtools.images.preprocess import Preprocess
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.text import named_pipelines
from camtools.plot import compare
from camtools.training.config import TrainConfig

ACCURACY, LAST = "accuracy", "last"
_SHOWN = ("MaxBoxAccV2", "GT-known", "PxAP", "LocalizationMAP", "PointingMAP")


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
    class_names: Sequence[str] | None
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
        found = {"val_accuracy": top1(result)}
        wanted = {*_SHOWN, self.config.best}
        for name, values in result.metrics.items():
            found |= {f"{name}/{metric}": one.value for metric, one in values.items() if metric in wanted}
        self.judge(found)
        return found

    def judge(self, row: dict[str, float]) -> float:
        """Return the number by which the best epoch is chosen.

        Raises:
            InputError: The data has no truth for it.
        """
        best = self.config.best
        key = "val_accuracy" if best in (ACCURACY, LAST) else f"{list(self.pipelines)[-1]}/{best}"
        if key not in row:
            known = ", ".join(sorted({name.partition("/")[2] for name in row if "/" in name}))
            raise InputError(f"best={best!r}: the validation set has no truth for it, only for {known or 'classes'}")
        return row[key]


def read_pipelines(name: str, pipeline: Any) -> dict[str, Pipeline]:
    """Return "cam" and, where it is another, the recipe's pipeline under the recipe's name, last."""
    found = named_pipelines("cam")
    own = list(named_pipelines(pipeline).values())[-1]
    return found if own.summary == found["cam"].summary else {**found, name: own}


def check_best(best: str, validated: bool) -> None:
    """Refuse an unknown choice before anything is trained.

    Args:
        best: `TrainConfig.best`.
        validated: Whether there is a validation set.

    Raises:
        InputError: It is unknown, or needs a validation set.
    """
    if best not in (ACCURACY, LAST, *METRICS):
        raise InputError(f"best={best!r}: expected {ACCURACY}, {LAST}, or one of {', '.join(METRICS)}")
    if best in METRICS and not validated:
        raise InputError(f"best={best!r} needs a validation set: expected one. Give val_set (--val), or best='last'")


def top1(result: EvaluationResult) -> float:
    """Return the share of images whose likeliest class is one of theirs, per cent."""
    _, owner = np.unique(result.rows.index, return_inverse=True)
    least = np.full(owner.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, owner, result.rows.rank)
    return 100 * float((least == 0).mean())


_HEIGHT = 160


def before_and_after(
    before: nn.Module,
    after: nn.Module,
    data: Selection,
    index: Sequence[int],
    pipelines: Mapping[str, Pipeline],
    *,
    count: int,
    protocol: str,
    preprocess: Preprocess,
    class_names: Sequence[str],
) -> Image.Image | None:
    """Draw the true class's map of images spread over a data set: a row per image.

    Args:
        before: The model that training began with; its map is a plain CAM.
        after: The trained model.
        data: Validation images.
        index: The model's index for each of the data's classes.
        pipelines: How the trained model's maps are read, a column each.
        count: How many images at most; those without a class are passed over.
        protocol: Of the validation.
        preprocess: The model's.
        class_names: The model's.

    Returns:
        None where there is nothing to draw.
    """
    chosen = data.indices[:: max(1, len(data) // max(1, count))][:count]
    records = [record for record in map(data.record, chosen) if len(record.labels)]
    if not records:
        return None
    transform = Protocol.of(protocol, preprocess).transform
    images, targets = [record.image for record in records], [index[record.label] for record in records]
    columns: list[tuple[str, nn.Module, Pipeline]] = [("before: cam", before, pipelines["cam"])]
    columns += [(f"after: {name}", after, pipeline) for name, pipeline in pipelines.items()]
    found: list[Any] = []
    for _, model, pipeline in columns:
        found.append(Explainer(model, pipeline, transform=transform, class_names=class_names)(images, target=targets))
    truth = [record.boxes if len(record.boxes) else None for record in records]
    rows = [list(row) for row in zip(*found, strict=True)]
    return compare(rows, titles=[title for title, _, _ in columns], truth=truth, height=_HEIGHT, image=True)
