"""Contact sheets: images a pipeline does best and worst on, or gains and loses most, pipelines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camtools.checks import whole
from camtools.datasets.record import Record
from camtools.drawing.legend import INK, Bar, Key
from camtools.drawing.overlay import BOX, TRUTH
from camtools.drawing.panels import Panel, Text, figure, in_rows, note, strip, thumbnail
from camtools.errors import InputError
from camtools.evaluation.report.maps import MapOf, checked_map
from camtools.evaluation.report.ranking import AT, By, best_levels, changes, chosen_by, extremes, position_of, row_ious
from camtools.evaluation.results import EvaluationResult
from camtools.metrics.box_ious import largest_boxes
from camtools.metrics.scoremap import PROTOCOL_SIZE, scoremaps

_GAIN, _LOSS = (0, 110, 60), (180, 40, 0)  # letters
_ASPECTS = (3 / 4, 4 / 3)  # of the cells that images are fitted into


@dataclass(frozen=True)
class Section:
    """A part of a sheet.

    Attributes:
        title: What its images have in common.
        rows: Their rows in the result, in the order in which they are shown.
    """

    title: str
    rows: tuple[int, ...]


class Sheets:
    """Draws contact sheets of one result.

    An image's entry has its id and class, the image with the true boxes, and for each pipeline the map with the true
    boxes and the predicted one, and the IoU as the evaluation measured it. Each is drawn once, whatever the number of
    sheets it is on.

    Args:
        result: Of an evaluation.
        records: The data set, or anything with `records[index]` for the rows' `index`.
        maps: What makes each pipeline's map, see `model_maps`, `explainer_map` and `saved_maps`; called for the rows
            that are shown only.
        by: Which box counts and is drawn: "own", at the pipeline's own threshold, or "best", at the threshold best for
            MaxBoxAcc. None for the own where there is one.
        height: Of a cell in pixels.
        alpha: Weight of the maps' colours, in [0, 1].
        colormap: Name of a matplotlib colour map.

    Attributes:
        width: Of a cell, pixels: as wide as the data set's widest image, from 3:4 to 4:3.

    Raises:
        InputError: A pipeline has no map, or an argument is out of range.
    """

    def __init__(
        self,
        result: EvaluationResult,
        records: Any,
        maps: Mapping[str, MapOf],
        by: By | None = None,
        height: int = 160,
        alpha: float = 0.5,
        colormap: str = "inferno",
    ) -> None:
        whole("height", height, 32)
        missing = [name for name in result.pipelines if name not in maps]
        if missing:
            known = ", ".join(map(repr, maps)) or "none"
            raise InputError(f"maps has {known}: expected one for each pipeline, also {', '.join(map(repr, missing))}")
        self.result, self.records, self.maps = result, records, maps
        self.by = chosen_by(result, by)
        self.height, self.alpha, self.colormap = height, alpha, colormap
        widest = float((result.rows.sizes[:, 0] / result.rows.sizes[:, 1]).max())
        self.width = round(height * min(max(widest, _ASPECTS[0]), _ASPECTS[1]))
        self._levels, self._ious = best_levels(result), row_ious(result, self.by)
        self._own_boxes = result.rows.own_box if self.by == "own" else None
        self._cells: dict[tuple[int, int | None], Image.Image] = {}

    def best_and_worst(self, pipeline: str | None = None, best: int = 8, worst: int = 8) -> tuple[Section, Section]:
        """Choose the images that a pipeline does best and worst on; None for the baseline."""
        whole("best", best, 0)
        whole("worst", worst, 0)
        name = self.result.baseline if pipeline is None else pipeline
        ious = self._ious[position_of(self.result, name)]
        top, bottom = extremes(ious, best, worst)
        count = f"of {int((~np.isnan(ious)).sum()):,}, by the IoU of the box {AT[self.by]}"
        return (
            Section(f"{name}: best {len(top)} {count}", tuple(top.tolist())),
            Section(f"{name}: worst {len(bottom)} {count}", tuple(bottom.tolist())),
        )

    def gained_and_lost(self, pipeline: str, gained: int = 8, lost: int = 8) -> tuple[Section, Section]:
        """Choose the images in which a pipeline's box fits better, and worse, than the baseline's by the most."""
        whole("gained", gained, 0)
        whole("lost", lost, 0)
        base = self.result.baseline
        ious, reference = (self._ious[position_of(self.result, name)] for name in (pipeline, base))
        if pipeline == base:
            raise InputError(f"pipeline={pipeline!r} is the baseline: expected another one to compare with it")
        up, down = changes(ious, reference, gained, lost)
        more, less = int((ious > reference).sum()), int((ious < reference).sum())
        return (
            Section(f"{pipeline}: largest gains against {base}, {len(up)} of {more:,}", tuple(up.tolist())),
            Section(f"{pipeline}: largest losses against {base}, {len(down)} of {less:,}", tuple(down.tolist())),
        )

    def draw(self, sections: Sequence[Section], pipelines: Sequence[str] | None = None) -> Image.Image:
        """Draw a sheet.

        Args:
            sections: From top to bottom.
            pipelines: Those shown, in this order; None for all.

        Returns:
            RGB image.
        """
        positions = [position_of(self.result, name) for name in pipelines or self.result.pipelines]
        size = max(11, round(self.height / 14))
        rows: list[Sequence[Panel] | Text] = []
        for section in sections:
            words = section.title if section.rows else f"{section.title}: none"
            rows.append(Text(words, bold=True, room=40, left=True, scale=1.25))
            if section.rows:
                rows += in_rows([self._entry(row, positions, size) for row in section.rows], None, size)
        keys = [Key(f"predicted box, {AT[self.by]}", BOX), Key("true box", TRUTH, dashed=True)]
        return figure(rows, [Bar("class map, normalised", self.colormap), *keys], size, aligned=False)

    def cell(self, row: int, position: int | None) -> Image.Image:
        """Return a row's image with its true boxes, and the map and box of a pipeline, or of none.

        Raises:
            InputError: The record is another one, or the map is none.
        """
        if (row, position) in self._cells:
            return self._cells[row, position]
        rows, record = self.result.rows, self._record(row)
        shrink = min(self.width / record.size[0], self.height / record.size[1])
        size = max(1, round(record.size[0] * shrink)), max(1, round(record.size[1] * shrink))
        options: dict[str, Any] = {"alpha": self.alpha, "colormap": self.colormap}
        if position is not None:
            name = self.result.pipelines[position]
            values = checked_map(self.maps[name](record, int(rows.labels[row])), name, record)
            boxes = self._own_boxes
            box = self._best_box(values, position, record.size) if boxes is None else boxes[position, row]
            options |= {"map": values.numpy(), "boxes": [] if np.isnan(box).any() else [box]}
        line = max(2, round(self.height / 80))
        drawn = self._cells[row, position] = thumbnail(record.image, size, truth=rows.truth[row], line=line, **options)
        return drawn

    def _entry(self, row: int, positions: list[int], size: int) -> Panel:
        """Draw one image: its id and class over its cells, a caption under each."""
        rows, pipelines, ious = self.result.rows, self.result.pipelines, self._ious[:, row]
        base = pipelines.index(self.result.baseline)
        cells: list[Panel] = [[self.cell(row, None), note("truth")]]
        for p in positions:
            change = float(ious[p] - ious[base]) if base in positions else 0.0
            shown = f" ({change:+.2f})".replace("-", "−") if abs(change) >= 0.005 else ""
            missing = self._own_boxes is not None and bool(np.isnan(self._own_boxes[p, row]).any())
            words = f"{'no box, ' * missing}IoU {ious[p]:.2f}{shown}"
            colour = INK if not shown else _GAIN if change > 0 else _LOSS
            cells.append([self.cell(row, p), Text(pipelines[p], 2), Text(words, 2, colour=colour)])
        facts = Text(rows.ids[row], 1, bold=True, left=True), Text(rows.names[row], 1, left=True)
        widths = [self.width] * len(cells) + [size]  # an empty panel keeps entries apart
        return [*facts, strip([*cells, []], widths, round(size / 2), size)]

    def _best_box(self, values: Tensor, position: int, size: tuple[int, int]) -> NDArray[Any]:
        """Return the largest contour's box at a pipeline's best threshold, in the image's pixels; NaN for none."""
        levels = scoremaps(values[None], PROTOCOL_SIZE)
        box = largest_boxes(levels, workers=1)[0, self._levels[position]].numpy().astype(np.float64)
        scale = np.array([size[0] / PROTOCOL_SIZE[1], size[1] / PROTOCOL_SIZE[0]] * 2)
        return box * scale if box.any() else np.full(4, np.nan)

    def _record(self, row: int) -> Record:
        """Return a row's record, whatever the target of the data set is."""
        index, name = int(self.result.rows.index[row]), self.result.rows.ids[row]
        try:
            record = self.records.record(index) if hasattr(self.records, "record") else self.records[index]
        except (KeyError, IndexError) as error:
            raise InputError(
                f"records has no {index}, which is {name!r}: expected the data that was evaluated"
            ) from error
        if not isinstance(record, Record):
            raise InputError(f"records[{index}] is {type(record).__name__}: expected a camtools.datasets.Record")
        if record.id != name:
            raise InputError(f"records[{index}] is {record.id!r}, not {name!r}: expected the data that was evaluated")
        return record


def contact_sheet(
    result: EvaluationResult,
    records: Any,
    maps: Mapping[str, MapOf],
    pipeline: str | None = None,
    *,
    best: int = 8,
    worst: int = 8,
    **options: Any,
) -> Image.Image:
    """Draw the images that a pipeline does best and worst on, with all pipelines side by side.

    Args:
        result: Of an evaluation.
        records: The data set.
        maps: What makes each pipeline's map, see `model_maps`.
        pipeline: Whose best and worst; None for the baseline's.
        best: How many of the best.
        worst: How many of the worst.
        **options: by, height, alpha and colormap, see `Sheets`.

    Raises:
        InputError: An argument cannot be used, or `records` is another data set.
    """
    sheets = Sheets(result, records, maps, **options)
    return sheets.draw(sheets.best_and_worst(pipeline, best, worst))


def change_sheet(
    result: EvaluationResult,
    records: Any,
    maps: Mapping[str, MapOf],
    pipeline: str,
    *,
    gained: int = 8,
    lost: int = 8,
    **options: Any,
) -> Image.Image:
    """Draw the images in which a pipeline gains and loses most against the baseline, both side by side.

    Arguments and errors are those of `contact_sheet`.
    """
    sheets = Sheets(result, records, maps, **options)
    return sheets.draw(sheets.gained_and_lost(pipeline, gained, lost), (result.baseline, pipeline))
