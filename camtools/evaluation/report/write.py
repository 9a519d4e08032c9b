"""`write_report`: table, curves and contact sheets of an evaluation, as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camtools.errors import InputError
from camtools.evaluation.report.curve import plot_curve
from camtools.evaluation.report.lines import available
from camtools.evaluation.report.maps import MapOf
from camtools.evaluation.report.sheet import By, Sheets, position_of
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
    wanted = result.pipelines if pipelines is None else tuple(pipelines)
    if isinstance(pipelines, str):
        raise InputError(f"pipelines={pipelines!r}: expected a list of names")
    for name in wanted:
        position_of(result, name)
    made: dict[str, Callable[[Path], None]] = {TABLE: lambda path: _text(markdown(result), path)}
    for metric in available(result):
        made[f"curve-{metric}.png"] = lambda path, metric=metric: plot_curve(result, metric).save(path)  # type: ignore[misc]
    if records is not None and maps is not None and "MaxBoxAcc" in available(result):
        sheets = Sheets(result, records, maps, by=by)
        slugs = _slugs(result.pipelines)
        for name in wanted:
            made[f"sheet-{slugs[name]}.png"] = _drawn(sheets, sheets.best_and_worst(name, best, worst), None)
        for name in wanted:
            if name != result.baseline:
                pair = (result.baseline, name)
                made[f"changes-{slugs[name]}.png"] = _drawn(sheets, sheets.gained_and_lost(name, best, worst), pair)
    place = Path(out)
    try:
        with staging(place) as stage:
            for name, write in made.items():
                write(stage / name)
            swap(stage, place, list(made))
    except OSError as error:
        raise InputError(f"the report cannot be written to {place}: {error}. Name another folder") from error
    return [place / name for name in made]


def _drawn(sheets: Sheets, sections: Any, shown: tuple[str, ...] | None) -> Callable[[Path], None]:
    return lambda path: sheets.draw(sections, shown).save(path)


def _text(words: str, path: Path) -> None:
    path.write_text(words, encoding="utf-8")


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Return names that files can have, each another."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        short = re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "pipeline"
        slug, number = short, 2
        while slug.lower() in taken:
            slug, number = f"{short}-{number}", number + 1
        taken.add(slug.lower())
        found[name] = slug
    return found
