"""What a fine-tune gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from camtools.notebook import html_table
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import preset
from camtools.training.logs import EpochRow


@dataclass(frozen=True, eq=False, repr=False)
class FinetuneResult:
    """What `camtools.finetune` gives back.

    Attributes:
        model: The best epoch's model, in eval mode, on the device where the caller's lived.
        history: One row per epoch: its number, learning rate, losses, "val_accuracy" and "PIPELINE/METRIC", all but
            rates and losses in per cent. Epoch 0 is the validation before training.
        best_epoch: Whose model it is, from 1.
        class_names: Of the model's classes.
        settings: All that the run depended on.
        paths: Files by what they are: "best", "last", "state", "csv", "tensorboard", "config", "examples". Empty
            without `out`. What a recipe saves beside the model has the file's own name ("bank").
        pipeline: How the model's maps are read; with what the recipe learnt beside the weights.
    """

    model: nn.Module
    history: list[EpochRow]
    best_epoch: int
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    paths: dict[str, Path] = field(default_factory=dict)
    pipeline: Pipeline = field(default_factory=lambda: preset("cam"))

    def __repr__(self) -> str:
        best = next((row for row in self.history if row.get("epoch") == self.best_epoch), {})
        told = ", ".join(f"{name} {value:.4g}" for name, value in best.items() if name != "epoch")
        where = f", {str(self.paths['best'])!r}" if "best" in self.paths else ""
        epochs = max((int(row["epoch"]) for row in self.history), default=0)
        return f"FinetuneResult({type(self.model).__name__}, epoch {self.best_epoch} of {epochs}: {told}{where})"

    def _repr_html_(self) -> str:
        header = list(dict.fromkeys(name for row in self.history for name in row))
        rows = [[f"{row[name]:.4g}" if name in row else "" for name in header] for row in self.history]
        return html_table(rows, header, f"{type(self.model).__name__}; best epoch: {self.best_epoch}")
