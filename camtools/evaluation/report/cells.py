"""The pictures in a contact sheet: one with its true boxes, and with a pipeline's map and box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camtools.datasets import Record
from camtools.errors import InputError
from camtools.evaluation.report.maps import MapOf, checked_map
from camtools.evaluation.report.ranking import By, best_levels
from camtools.evaluation.results import EvaluationResult
from camtools.legend import draw_box
from camtools.metrics.box_ious import largest_boxes
from camtools.metrics.scoremap import PROTOCOL_SIZE, scoremaps
from camtools.overlay import BOX, blend
from camtools.plot.comparison import TRUTH
from camtools.plot.layout import resized

_ASPECTS = (3 / 4, 4 / 3)  # of the cells that pictures are fitted into


class Cells:
    """Draws the pictures of a sheet, each once; arguments are those of `Sheets`.

    Attributes:
        width: Of a cell, pixels: as wide as the data set's widest picture, from 3:4 to 4:3.
    """

    def __init__(
        self,
        result: EvaluationResult,
        records: Any,
        maps: Mapping[str, MapOf],
        by: By,
        height: int,
        alpha: float,
        colormap: str,
    ) -> None:
        self.result, self.records, self.maps = result, records, maps
        self.by, self.height, self.alpha, self.colormap = by, height, alpha, colormap
        self.levels = best_levels(result) if by == "best" else []
        widest = float((result.rows.sizes[:, 0] / result.rows.sizes[:, 1]).max())
        self.width = round(height * min(max(widest, _ASPECTS[0]), _ASPECTS[1]))
        self._drawn: dict[tuple[int, int | None], Image.Image] = {}

    def __call__(self, row: int, position: int | None) -> Image.Image:
        """Return a row's picture with its true boxes, and those of a pipeline, or of none.

        Raises:
            InputError: The record is another one, or the map is none.
        """
        if (row, position) not in self._drawn:
            self._drawn[row, position] = self._made(self.record(row), row, position)
        return self._drawn[row, position]

    def record(self, row: int) -> Record:
        """Return a row's record, whatever the target of the data set is.

        Raises:
            InputError: It is another picture's.
        """
        index, name = int(self.result.rows.index[row]), self.result.rows.ids[row]
        try:
            found = self.records.record(index) if hasattr(self.records, "record") else self.records[index]
        except (KeyError, IndexError) as error:
            raise InputError(
                f"records has no {index}, which is {name!r}: expected the data that was evaluated"
            ) from error
        if not isinstance(found, Record):
            raise InputError(f"records[{index}] is {type(found).__name__}: expected a camtools.datasets.Record")
        if found.id != name:
            raise InputError(f"records[{index}] is {found.id!r}, not {name!r}: expected the data that was evaluated")
        return found

    def _made(self, record: Record, row: int, position: int | None) -> Image.Image:
        rows, (width, height) = self.result.rows, record.size
        shrink = min(self.width / width, self.height / height)
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        canvas = record.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        boxes: list[NDArray[Any]] = []
        if position is not None:
            name = self.result.pipelines[position]
            values = checked_map(self.maps[name](record, int(rows.labels[row])), name, record)
            canvas = blend(canvas, resized(values.numpy(), size).clip(0, 1), self.alpha, self.colormap)
            boxes = [rows.own_box[position, row] if self.by == "own" else self._best(values, position, record.size)]
        draw, thick = ImageDraw.Draw(canvas), max(2, round(self.height / 80))
        scale = np.array([size[0] / width, size[1] / height] * 2)
        for box in rows.truth[row]:
            draw_box(draw, np.rint(box * scale).tolist(), TRUTH, thick, dashed=True)
        for box in boxes:
            if not np.isnan(box).any():
                draw_box(draw, np.rint(box * scale).tolist(), BOX, thick)
        return canvas

    def _best(self, values: Tensor, position: int, size: tuple[int, int]) -> NDArray[Any]:
        """Return the largest contour's box at a pipeline's best threshold, in the picture's pixels; NaN for none."""
        levels = scoremaps(values[None], PROTOCOL_SIZE)
        box = largest_boxes(levels, workers=1)[0, self.levels[position]].numpy().astype(np.float64)
        scale = np.array([size[0] / PROTOCOL_SIZE[1], size[1] / PROTOCOL_SIZE[0]] * 2)
        return box * scale if box.any() else np.full(4, np.nan)
