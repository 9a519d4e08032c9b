"""Results made by hand: what every figure of a report shows is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from camtools.datasets import Record
from camtools.evaluation.results import EvaluationResult, Rows, Value

SIZES = [(40, 20), (20, 40), (30, 30), (60, 20), (30, 30)]
TRUTH = [4.0, 4.0, 16.0, 16.0]
Make = Callable[..., EvaluationResult]


@pytest.fixture
def make() -> Make:
    """A function for results of 5 images; the last has no true box.

    IoU of each pipeline and image: `base` up to level 51 (threshold 0.2), 0 above.
    """

    def result(
        names: tuple[str, ...] = ("cam", "rcam"),
        base: Any = ((0.9, 0.6, 0.2, 0.0), (0.5, 0.8, 0.2, 0.4)),
        until: tuple[int, ...] = (51, 102),
        values: dict[str, dict[str, Value]] | None = None,
        masks: bool = False,
        **changes: Any,
    ) -> EvaluationResult:
        count, images = len(names), len(SIZES)
        v1 = np.full((count, images, 256), np.nan, dtype=np.float32)
        for p in range(count):
            v1[p, :4] = np.asarray(base[p], dtype=np.float32)[:, None] * (np.arange(256) <= until[p])
        own = np.full((count, images), np.nan, dtype=np.float32)
        own[:, :4] = np.asarray(base, dtype=np.float32)[:count]
        own_box = np.tile(np.array([2, 4, 14, 16], dtype=np.float32), (count, images, 1))
        own_box[0, 3] = np.nan
        truth = [np.array([TRUTH], dtype=np.float32)] * 4 + [np.zeros((0, 4), dtype=np.float32)]
        extra: dict[str, Any] = {}
        if masks:
            on, off = (np.zeros((count, images, 1001), dtype=np.uint16) for _ in range(2))
            on[:, :, 900], on[:, :, 300], off[:, :, 300], off[:, :, 0] = 3, 1, 1, 5
            extra = {"mask_iou": v1 / 2, "own_mask_iou": own / 2, "on_objects": on, "elsewhere": off}
        rows = Rows(
            index=np.arange(images),
            ids=[f"{number}.jpg" for number in range(images)],
            labels=np.arange(images),
            names=[f"class {number}" for number in range(images)],
            sizes=np.array(SIZES),
            truth=truth,
            rank=np.zeros(images, dtype=np.int64),
            score=np.full(images, 0.5, dtype=np.float32),
            v1=v1,
            v2=v1,
            own_iou=own,
            own_threshold=np.full((count, images), 0.2, dtype=np.float32),
            own_box=own_box,
            pointing=np.ones((count, images), dtype=np.float32),
            **extra,
        )
        metrics = values or {name: {"MaxBoxAcc": Value(50.0, 0.0)} for name in names}
        given: dict[str, Any] = {"failed": [], "settings": {"protocol": "wsol"}, "baseline": names[0]}
        return EvaluationResult(names, rows, metrics, **{**given, **changes})

    return result


@pytest.fixture
def records() -> dict[int, Record]:
    """The images of `make`: even greys."""
    box = torch.tensor([TRUTH])
    return {
        number: Record(Image.new("RGB", size, (90, 100, 110)), torch.tensor([number]), box, None, None, f"{number}.jpg")
        for number, size in enumerate(SIZES)
    }


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is written on an image."""
    texts: list[str] = []
    text_of = ImageDraw.ImageDraw.text

    def text(draw: Any, position: Any, words: str, **options: Any) -> None:
        texts.append(words)
        text_of(draw, position, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts
