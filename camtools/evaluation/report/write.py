"""`write_report`: table, curves and contact sheets of an evaluation, as files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from camtools.checks import as_path
from camtools.errors import InputError
from camtools.evaluation.report.curve import plot_curve
from camtools.evaluation.report.lines import available
from camtools.evaluation.report.maps import MapOf
from camtools.evaluation.report.ranking import By, position_of
from camtools.evaluation.report.sheet import Sheets
from camtools.evaluation.report.table import markdown
from camtools.evaluation.results import EvaluationResult
from camtools.files import staging, swap

TABLE = "table.md"


def write_report(
    result: EvaluationResult,
    out: str | Path,
    records: Any = None,
    maps: Mapping[str, MapOf] | None = None,
    *,
    pipelines: Sequence[str] | None = None,
    best: int = 8,
    worst: int = 8,
    by: By | None = None,
) -> list[Path]:
    """Write table.md, curve-METRIC.png for every metric that has a curve, and, given the data set, contact sheets.

    The sheets are sheet-PIPELINE.png, a pipeline's best and worst images, and changes-PIPELINE.png, the images in
    which it gains and loses most against the baseline. The files come all or none.

    Args:
        result: Of an evaluation.
        out: The folder, made if need be; other files in it stay.
        records: The data set, for the sheets.
        maps: What makes each pipeline's map, see `model_maps`.
        pipelines: Those that get sheets; None for all.
        best: How many of the best images are shown, and of the gains.
        worst: How many of the worst, and of the losses.
        by: Which box counts, see `Sheets`.

    Returns:
        The files.

    Raises:
        InputError: `records` comes without `maps` or the other way round, an argument cannot be used, or the folder
            cannot be written.
    """
    if (records is None) != (maps is None):
        given, other = ("records", "maps") if maps is None else ("maps", "records")
        raise InputError(f"{given} came without {other}: contact sheets need both. Leave both out for none")
    if isinstance(pipelines, str):
        raise InputError(f"pipelines={pipelines!r}: expected a list of names")
    wanted = result.pipelines if pipelines is None else tuple(pipelines)
    for name in wanted:
        position_of(result, name)
    drawn = records is not None and maps is not None and "MaxBoxAcc" in available(result)
    sheets = Sheets(result, records, maps or {}, by=by) if drawn else None
    place, names = as_path("out", out), [TABLE]
    try:
        with staging(place) as stage:
            (stage / TABLE).write_text(markdown(result), encoding="utf-8")
            for name, image in _images(result, sheets, wanted, best, worst):
                image.save(stage / name)
                names.append(name)
            swap(stage, place, names)
    except OSError as error:
        raise InputError(f"the report cannot be written to {place}: {error}. Name another folder") from error
    return [place / name for name in names]


def _images(
    result: EvaluationResult, sheets: Sheets | None, wanted: Sequence[str], best: int, worst: int
) -> Iterator[tuple[str, Image.Image]]:
    """Draw curves and sheets, one after another, with the names of their files."""
    for metric in available(result):
        yield f"curve-{metric}.png", plot_curve(result, metric)
    slugs = _slugs(result.pipelines)
    if sheets is None:
        return
    for name in wanted:
        yield f"sheet-{slugs[name]}.png", sheets.draw(sheets.best_and_worst(name, best, worst))
    for name in wanted:
        if name != result.baseline:
            pair = (result.baseline, name)
            yield f"changes-{slugs[name]}.png", sheets.draw(sheets.gained_and_lost(name, best, worst), pair)


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Return names that files can have, each another."""
    slugs: dict[str, str] = {}
    for name in names:
        short = re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "pipeline"
        numbered = (short if number == 1 else f"{short}-{number}" for number in count(1))
        taken = {slug.lower() for slug in slugs.values()}
        slugs[name] = next(slug for slug in numbered if slug.lower() not in taken)
    return slugs
