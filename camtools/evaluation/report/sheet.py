"""Contact sheets: images a pipeline does best and worst on, or gains and loses most, pipelines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from camtools.checks import whole
from camtools.datasets import Record
from camtools.drawing.legend import FAINT, INK, PAPER, Bar, Key, draw_box, legend
from camtools.drawing.overlay import BOX, blend
from camtools.drawing.panels import resized
from camtools.drawing.text import cut, font, line_height, wrapped
from camtools.errors import InputError
from camtools.evaluation.report.maps import MapOf, checked_map
from camtools.evaluation.results import LEVEL_OF, EvaluationResult, level_curve
from camtools.metrics.box_ious import largest_boxes
from camtools.metrics.scoremap import PROTOCOL_SIZE, scoremaps
from camtools.plot import TRUTH

_WIDTH = 1900  # pixels that a sheet may have before entries go to a further line; one entry may be wider
_SIGN = {1: (0, 110, 60), -1: (180, 40, 0), 0: INK}  # letters of gains and losses


@dataclass(frozen=True)
class Section:
    """A part of a sheet.

    Attributes:
        title: What its images have in common.
        rows: Their rows in the result, in the order in which they are shown.
    """

    title: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sheets:
    """Draws contact sheets of one result.

    An image's entry has its id and class, the image with the true boxes, and for each pipeline the map with the true
    boxes and the found one, and the IoU as the evaluation measured it. Images are fitted into cells of one size.

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

    Raises:
        InputError: A pipeline has no map, or an argument is out of range.
    """

    result: EvaluationResult
    records: Any
    maps: Mapping[str, MapOf]
    by: By | None = None
    height: int = 160
    alpha: float = 0.5
    colormap: str = "inferno"

    def __post_init__(self) -> None:
        whole("height", self.height, 32)
        missing = [name for name in self.result.pipelines if name not in self.maps]
        if missing:
            known = ", ".join(map(repr, self.maps)) or "none"
            raise InputError(f"maps has {known}: expected one for each pipeline, also {', '.join(map(repr, missing))}")
        object.__setattr__(self, "by", chosen_by(self.result, self.by))

    def best_and_worst(self, pipeline: str | None = None, best: int = 8, worst: int = 8) -> tuple[Section, Section]:
        """Choose the images that a pipeline does best and worst on; None for the baseline."""
        name = self.result.baseline if pipeline is None else pipeline
        ious = self._ious[position_of(self.result, name)]
        top, bottom = extremes(ious, _many(best, "best"), _many(worst, "worst"))
        count = f"of {int((~np.isnan(ious)).sum()):,}, by the IoU of {self._box}"
        return (
            Section(f"{name}: best {len(top)} {count}", tuple(top.tolist())),
            Section(f"{name}: worst {len(bottom)} {count}", tuple(bottom.tolist())),
        )

    def gained_and_lost(self, pipeline: str, gained: int = 8, lost: int = 8) -> tuple[Section, Section]:
        """Choose the images in which a pipeline's box fits better, and worse, than the baseline's by the most."""
        base = self.result.baseline
        ious = self._ious
        one, other = ious[position_of(self.result, pipeline)], ious[position_of(self.result, base)]
        if pipeline == base:
            raise InputError(f"pipeline={pipeline!r} is the baseline: expected another one to compare with it")
        up, down = changes(one, other, _many(gained, "gained"), _many(lost, "lost"))
        more, less = int((one > other).sum()), int((one < other).sum())
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
        names = self.result.pipelines if pipelines is None else tuple(pipelines)
        positions = [position_of(self.result, name) for name in names]
        size = max(11, round(self.height / 14))
        parts = [self._section(section, positions, size) for section in sections]
        width = max([40 * size, *(part.width for part in parts)])
        box = f"found box, {self._box.removeprefix('the box ')}"
        entries: list[Bar | Key] = [
            Bar("class map, normalised", self.colormap),
            Key(box, BOX),
            Key("true box", TRUTH, dashed=True),
        ]
        below = legend(entries, width, size, size)
        canvas = Image.new("RGB", (width, sum(part.height for part in parts) + below.height), PAPER)
        y = 0
        for part in (*parts, below):
            canvas.paste(part, (0, y))
            y += part.height
        return canvas

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.result, self.records, self.maps, self._by, self.height, self.alpha, self.colormap)

    @cached_property
    def _ious(self) -> NDArray[np.float64]:
        return row_ious(self.result, self._by)

    @property
    def _by(self) -> By:
        assert self.by is not None
        return self.by

    @property
    def _box(self) -> str:
        return "the box at its own threshold" if self._by == "own" else "the box at the best threshold"

    def _section(self, section: Section, positions: list[int], size: int) -> Image.Image:
        """Draw a heading and entries below it, as many beside each other as fit."""
        gap = size
        entries = [self._entry(row, positions, size) for row in section.rows]
        step = entries[0].width + 2 * gap if entries else 0
        across = max(1, min(len(entries), (_WIDTH - gap) // step)) if entries else 1
        lines = [entries[k : k + across] for k in range(0, len(entries), across)]
        width = max(gap + across * step, 40 * size)
        face = font(round(1.25 * size), True)
        title = wrapped(section.title if entries else f"{section.title}: none", face, width - 2 * gap, 3)
        top = 2 * gap + len(title) * line_height(face)
        canvas = Image.new("RGB", (width, top + sum(max(e.height for e in line) + gap for line in lines)), PAPER)
        draw = ImageDraw.Draw(canvas)
        for k, words in enumerate(title):
            draw.text((gap, gap + k * line_height(face)), words, fill=INK, font=face)
        y = top
        for line in lines:
            for k, entry in enumerate(line):
                canvas.paste(entry, (gap + k * step, y))
            y += max(entry.height for entry in line) + gap
        return canvas

    def _entry(self, row: int, positions: list[int], size: int) -> Image.Image:
        """Draw one image: a line with its id and class, cells, and a caption under each."""
        rows, wide = self.result.rows, self._cells.width
        ious = self._ious[:, row]
        base = self.result.pipelines.index(self.result.baseline)
        columns = [(self._cells(row, None), [("truth", FAINT)])]
        for p in positions:
            change = ious[p] - ious[base] if p != base and base in positions else 0.0
            shown = f" ({change:+.2f})".replace("-", "−") if abs(change) >= 0.005 else ""
            missing = self._by == "own" and bool(np.isnan(rows.own_box[p, row]).any())
            words = f"{'no box, ' * missing}IoU {ious[p]:.2f}{shown}"
            sign = _SIGN[int(np.sign(change))] if shown else INK
            columns.append((self._cells(row, p), [(self.result.pipelines[p], INK), (words, sign)]))
        face, bold, between = font(size), font(size, True), round(size / 2)
        high = line_height(face)
        top = 2 * high + between // 2
        lines = [
            [(words, colour) for text, colour in texts for words in wrapped(text, face, wide, 2)]
            for _, texts in columns
        ]
        deep = max(map(len, lines))
        width = len(columns) * (wide + between) - between
        canvas = Image.new("RGB", (width, 2 * high + self.height + high * deep + 2 * between), PAPER)
        draw = ImageDraw.Draw(canvas)
        for k, (words, letters) in enumerate(((rows.ids[row], bold), (rows.names[row], face))):
            line = cut(" ".join(words.split()), lambda text, letters=letters: letters.getlength(text) <= width)  # type: ignore[misc]
            draw.text((0, k * high), line, fill=INK, font=letters)
        for k, ((cell, _), texts) in enumerate(zip(columns, lines, strict=True)):
            x = k * (wide + between)
            canvas.paste(cell, (x + (wide - cell.width) // 2, top + (self.height - cell.height) // 2))
            for n, (words, colour) in enumerate(texts):
                at = (x + (wide - face.getlength(words)) // 2, top + self.height + between // 2 + n * high)
                draw.text(at, words, fill=colour, font=face)
        return canvas


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


def _many(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{name}={value!r}: expected how many images, a whole number of at least 0")
    return value


_ASPECTS = (3 / 4, 4 / 3)  # of the cells that images are fitted into


class Cells:
    """Draws the images of a sheet, each once; arguments are those of `Sheets`.

    Attributes:
        width: Of a cell, pixels: as wide as the data set's widest image, from 3:4 to 4:3.
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
        """Return a row's image with its true boxes, and those of a pipeline, or of none.

        Raises:
            InputError: The record is another one, or the map is none.
        """
        if (row, position) not in self._drawn:
            self._drawn[row, position] = self._made(self.record(row), row, position)
        return self._drawn[row, position]

    def record(self, row: int) -> Record:
        """Return a row's record, whatever the target of the data set is.

        Raises:
            InputError: It is another image's.
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
        """Return the largest contour's box at a pipeline's best threshold, in the image's pixels; NaN for none."""
        levels = scoremaps(values[None], PROTOCOL_SIZE)
        box = largest_boxes(levels, workers=1)[0, self.levels[position]].numpy().astype(np.float64)
        scale = np.array([size[0] / PROTOCOL_SIZE[1], size[1] / PROTOCOL_SIZE[0]] * 2)
        return box * scale if box.any() else np.full(4, np.nan)


By = Literal["own", "best"]
Rows = NDArray[np.int64]


def chosen_by(result: EvaluationResult, by: By | None) -> By:
    """Return which box counts: the one asked for, or else the pipeline's own, if it has one.

    Raises:
        InputError: `by` is neither "own" nor "best" nor None.
    """
    if by is not None and by not in get_args(By):
        raise InputError(f"by={by!r}: expected 'own' (the pipeline's own box), 'best' (at the best threshold) or None")
    return by or ("best" if np.isnan(result.rows.own_iou).all() else "own")


def row_ious(result: EvaluationResult, by: By) -> NDArray[np.float64]:
    """Return the IoU of each pipeline's box in each row, (P, N) float64; NaN in rows without a true box.

    Args:
        result: Of an evaluation.
        by: "own": the box at the pipeline's own threshold. "best": that of the largest contour at the threshold best
            for MaxBoxAcc.
    """
    if by == "own":
        return np.asarray(result.rows.own_iou, dtype=np.float64)
    return np.stack([v1[:, level] for v1, level in zip(result.rows.v1, best_levels(result), strict=True)]).astype(float)


def best_levels(result: EvaluationResult) -> list[int]:
    """Return the level that each pipeline's MaxBoxAcc is best at, the smallest of equal ones, P."""
    return [int(LEVEL_OF[np.argmax(curve[LEVEL_OF])]) for curve in level_curve(result.rows, "MaxBoxAcc")]


def extremes(ious: NDArray[np.float64], best: int, worst: int) -> tuple[Rows, Rows]:
    """Return the rows with the largest IoU, largest first, and those with the smallest, smallest first.

    Equal ones stay in the data set's order. No row is in both: the best come first where there are few.

    Args:
        ious: (N,); rows with NaN are left out.
        best: At most so many.
        worst: At most so many.
    """
    known = np.flatnonzero(~np.isnan(ious))
    top = known[np.argsort(-ious[known], kind="stable")][:best]
    rest = known[~np.isin(known, top)]
    return top, rest[np.argsort(ious[rest], kind="stable")][:worst]


def changes(ious: NDArray[np.float64], reference: NDArray[np.float64], gained: int, lost: int) -> tuple[Rows, Rows]:
    """Return the rows whose IoU grew most against a reference, and those whose IoU fell most, the largest change first.

    Args:
        ious: (N,); rows with NaN are left out, and so are those without a change.
        reference: (N,).
        gained: At most so many.
        lost: At most so many.
    """
    change = np.nan_to_num(ious - reference, nan=0.0)
    order = np.argsort(-change, kind="stable")
    back = np.argsort(change, kind="stable")
    return order[change[order] > 0][:gained], back[change[back] < 0][:lost]


def position_of(result: EvaluationResult, pipeline: str) -> int:
    """Return where a pipeline is in the result.

    Raises:
        InputError: It is not.
    """
    if pipeline not in result.pipelines:
        known = ", ".join(map(repr, result.pipelines))
        raise InputError(f"pipeline={pipeline!r}: expected one of the evaluation's, {known}")
    return result.pipelines.index(pipeline)
