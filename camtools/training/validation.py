"""How good the model is after an epoch: its classes, and its maps by `camtools.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from camtools.errors import InputError
from camtools.evaluation import METRICS, EvaluationResult, evaluate
from camtools.evaluation.naming import named_pipelines
from camtools.pipeline import Pipeline
from camtools.preprocess import Preprocess
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

        The accuracy is the share of pictures whose likeliest class is one of theirs.

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
    """Return the share of pictures whose likeliest class is one of theirs, per cent."""
    _, owner = np.unique(result.rows.index, return_inverse=True)
    least = np.full(owner.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, owner, result.rows.rank)
    return 100 * float((least == 0).mean())
