"""What `cream_regressor` and `decoder` learn from: what a classifier and a pipeline say of every training image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from camtools.explainer import Explainer
from camtools.explanation import Explanation
from camtools.pipeline.pipeline import Pipeline
from camtools.progress import progress_bar
from camtools.training.config import TrainConfig, option
from camtools.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class TaughtConfig(TrainConfig):
    """Settings of recipes that learn from a classifier's maps or boxes."""

    teacher_size: int | None = option(
        None,
        "Side of the input, in pixels, at which the classifier draws what is learnt; None: that of training. PSOL's is "
        "448, and its maps are twice as fine.",
        least=16,
    )


def explained(
    trainer: Trainer, teacher: nn.Module, pipeline: Pipeline, title: str, size: int | None = None
) -> Iterator[tuple[int, Explanation]]:
    """Yield (position, explanation) of this process's share of the training images, whole and of their own class.

    Args:
        trainer: Knows the images.
        teacher: A classifier that knows their classes.
        pipeline: How its maps are read.
        title: Of the bar.
        size: Side of the inputs in pixels; None for that of training.
    """
    explainer = Explainer(teacher, pipeline, device=trainer.device, batch_size=trainer.config.batch_size)
    with progress_bar(len(trainer.data), title, trainer.accelerator.is_main_process) as advance:
        for batch in trainer.plain_batches(size=size):
            found: Any = explainer(batch.images, target=batch.labels.tolist())
            yield from zip(batch.indices.tolist(), found, strict=True)
            advance(len(batch.indices))
