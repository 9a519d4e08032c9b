"""`camtools demo`: the main job without a network, on drawn scenes with the classifier that comes with camtools."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.cli.common import exit_codes, print_table


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
    from camtools.datasets.scenes import scene_classifier
    from camtools.explainer import Explainer

    start = time.perf_counter()
    with exit_codes(out, folder=False):
        names = [name.strip() for name in pipelines.split(",") if name.strip()]
        if not names:
            raise typer.BadParameter("expected names such as cam,rcam", param_hint="--pipelines")
        data = Scenes("test", n=max(scenes, measured), seed=seed)
        records = [data[i] for i in range(len(data))]
        images, labels = [record.image for record in records], [record.label for record in records]
        columns = [Explainer(scene_classifier(), name, batch_size=64)(images, target=labels) for name in names]
        _draw(columns, records, names, scenes, out)
        _print_table(columns, records[:measured], names)
    typer.echo(f"{out} written, {time.perf_counter() - start:.1f} s in all", err=True)
    typer.echo("Your own: camtools explain PHOTO --model timm/resnet50 --out results/", err=True)


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

    from camtools.metrics import PxAP
    from camtools.plot import best_iou

    rows, masks = [], torch.stack([record.mask for record in records])
    for name, column in zip(names, columns, strict=True):
        pairs = list(zip(column, records, strict=False))
        ious = torch.tensor([0.0 if exp.box is None else best_iou(exp.box, record.boxes) for exp, record in pairs])
        pixels = PxAP()
        pixels.update(torch.stack([exp.map for exp, _ in pairs]), masks)
        rows.append((name, f"{ious.mean():.3f}", f"{(ious >= 0.5).float().mean():.1%}", f"{pixels.compute():.1f}%"))
    right = sum(int(exp.logits.argmax()) == record.label for exp, record in zip(columns[0], records, strict=False))
    print_table(
        ("Pipeline", "Mean IoU of the boxes", "Boxes with IoU >= 0.5", "PxAP of the maps"),
        rows,
        title=f"{len(records)} scenes of the test split, true class",
        caption=f"the classifier is right on {right / len(records):.1%}",
    )
