"""`camtools export-results`: what explain and segment saved, in other formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camtools.cli.common import exit_codes, stdout_to_stderr
from camtools.errors import InputError

if TYPE_CHECKING:
    from camtools.exports import ImageExport


def export_results(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What was --out of camtools explain.")],
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="report.html, coco.json, labels.csv, results.parquet, label-studio.json, yolo:DIR, voc:DIR or "
            "fiftyone:NAME; or FORMAT:PLACE.",
        ),
    ],
) -> None:
    """Export the saved results of camtools explain, in any number of formats.

    Needs the maps that explain saves by default. Formats that copy images look for them where they were: run it from
    the same folder.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    with exit_codes(), stdout_to_stderr():
        from camtools.exports import Exports
        from camtools.progress import progress_bar

        manifest = _manifest(out)
        entries = manifest["images"]
        with Exports(targets, manifest.get("class_names")) as exports, progress_bar(len(entries), "Exporting") as tick:
            for item in _items(out, entries):
                exports.add(item)
                tick()
        typer.echo(f"{len(entries)} images exported: {', '.join(targets)}", err=True)


def _manifest(out: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        explained = manifest["settings"].get("command") is None
        list(manifest["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{out} holds no results: expected what was --out of camtools explain. Name that") from error
    if not explained:
        raise InputError(
            f"{out} holds results of camtools segment, which keep no class's own mask: expected those of explain. Run "
            "segment again with --export"
        )
    return manifest


def _items(out: Path, entries: list[dict[str, Any]]) -> Iterator[ImageExport]:
    """Yield what was saved of each image, in the run's order."""
    from camtools.cli.results import class_folder
    from camtools.explanation import Explanation
    from camtools.exports import ImageExport

    for entry in entries:
        folder, classes = out / entry["folder"], entry["classes"]
        if len(classes) == 1:
            places = [folder]
        else:
            places = [folder / class_folder(SimpleNamespace(**found)) for found in classes]
        yield ImageExport(entry["file"], [Explanation.load(place) for place in places], entry["folder"])
