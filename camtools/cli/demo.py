"""`camtools demo`: the main job without a network, on drawn scenes with the classifier that comes with camtools."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli.common import exit_codes, stdout_console


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the image goes.")] = Path("camtools-demo.png"),
    pipelines: Annotated[
        str, typer.Option(metavar="NAMES", help="Presets to compare, with commas between.")
    ] = "cam,rcam,fast",
    scenes: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Scenes in the image.")] = 4,
    measured: Annotated[int, typer.Option(min=1, metavar="N", help="Scenes in the figures.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Any other draws other scenes.")] = 0,
) -> None:
    """Explain drawn scenes that the classifier has not seen, and compare the boxes with the true ones.

    Needs no network, no weights and no images. Writes one image: a row per scene, a column per pipeline, true boxes
    beside those of the maps. Prints how well the boxes fit over more scenes.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    from camtools.datasets import Scenes

    start = time.perf_counter()
    with exit_codes():
        names = [name.strip() for name in pipelines.split(",") if name.strip()]
        if not names:
            raise typer.BadParameter("expected names such as cam,rcam", param_hint="--pipelines")
        data = Scenes("test", n=max(scenes, measured), seed=seed)
        records = [data[i] for i in range(len(data))]
        columns = [_explained(name, records) for name in names]
        _draw(columns, records, names, scenes, out)
        _print_table(columns, records[:measured], names)
    typer.echo(f"{out} written, {time.perf_counter() - start:.1f} s in all", err=True)
    typer.echo("Your own: camtools explain PHOTO --model timm/resnet50 --out results/", err=True)


def _explained(pipeline: str, records: list[Any]) -> list[Any]:
    """Explain the true class of every scene."""
    from camtools.datasets.scenes import scene_classifier
    from camtools.explainer import Explainer

    explainer = Explainer(scene_classifier(), pipeline, batch_size=64)
    return explainer([record.image for record in records], target=[record.label for record in records])


def _draw(columns: list[list[Any]], records: list[Any], names: list[str], count: int, out: Path) -> None:
    """Draw the first scenes."""
    from camtools.errors import InputError
    from camtools.plot import compare

    rows = [list(row) for row in zip(*(column[:count] for column in columns), strict=True)]
    drawn = compare(rows, titles=names, truth=[record.boxes for record in records[:count]], image=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out} cannot be written ({error}): expected a file such as demo.png in a folder") from error


def _print_table(columns: list[list[Any]], records: list[Any], names: list[str]) -> None:
    """Print how well boxes and maps fit; PxAP, the pixels' average precision, depends on no threshold."""
    import torch
    from rich.table import Table
    from torchvision.ops import box_iou

    from camtools.metrics import PxAP

    columns = [column[: len(records)] for column in columns]
    table = Table("Pipeline", "Mean IoU of the boxes", "Boxes with IoU >= 0.5", "PxAP of the maps")
    table.title = f"{len(records)} scenes of the test split, true class"
    masks = torch.stack([record.mask for record in records])
    for name, column in zip(names, columns, strict=True):
        ious = torch.tensor(
            [
                float(box_iou(exp.boxes[:1].float(), record.boxes).max()) if len(exp.boxes) else 0.0
                for exp, record in zip(column, records, strict=True)
            ]
        )
        pixels = PxAP()
        pixels.update(torch.stack([exp.map for exp in column]), masks)
        table.add_row(name, f"{ious.mean():.3f}", f"{(ious >= 0.5).float().mean():.1%}", f"{pixels.compute():.1f}%")
    right = sum(int(exp.logits.argmax()) == record.label for exp, record in zip(columns[0], records, strict=True))
    table.caption = f"the classifier is right on {right / len(records):.1%}"
    stdout_console().print(table)
