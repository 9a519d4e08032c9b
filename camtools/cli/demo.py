"""`camtools demo`: a first look without a network, on photographs that scikit-image brings and on drawn scenes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camtools.cli.common import complain, exit_codes, print_table

if TYPE_CHECKING:
    from PIL import Image

TOP = 3


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the image goes.")] = Path("camtools-demo.png"),
    pipelines: Annotated[
        str, typer.Option(metavar="NAMES", help="Presets to compare, with commas between.")
    ] = "cam,fast,best",
    scenes: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Scenes in their image.")] = 2,
    measured: Annotated[int, typer.Option(min=1, metavar="N", help="Scenes in the figures.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Any other draws other scenes.")] = 0,
    web: Annotated[
        bool, typer.Option("--web", help="Serve a page instead, to drop images on (pip install 'camtools[web]').")
    ] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="Of the page: see 'camtools models'.")] = "lite0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page, on this machine.")] = 7860,
) -> None:
    """Explain photographs and drawn scenes, under several pipelines.

    Needs no network and no images of yours. The photographs are scikit-image's, explained by an ImageNet classifier
    (pip install 'camtools[demo]'): a row per photograph, a column per pipeline, and what else the classifier saw in one
    of them. The scenes have exact truth: their image, beside the first, shows the true boxes, and a table says how well
    those of the maps fit.

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    from PIL import Image

    from camtools.errors import InputError, WeightsError

    if web:
        from camtools.cli.web import serve

        with exit_codes():
            serve(model, port)
        return
    start = time.perf_counter()
    with exit_codes(out, folder=False):
        names = [name.strip() for name in pipelines.split(",") if name.strip()]
        if not names:
            raise typer.BadParameter("expected names such as cam,fast", param_hint="--pipelines")
        if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
            raise InputError(f"{out} cannot be written: expected the name of an image file, such as demo.png")
        beside = out.with_name(f"{out.stem}-scenes{out.suffix}")
        try:
            _save(_photos(names), out)
        except WeightsError as error:
            complain(f"{error} Until then, the scenes alone.")
            beside = out
        columns, records = _scenes(names, max(scenes, measured), seed)
        _save(_scene_rows(columns, records[:scenes], names), beside)
        _print_table(columns, records[:measured], names)
    written = " and ".join(map(str, dict.fromkeys((out, beside))))
    typer.echo(f"{written} written, {time.perf_counter() - start:.1f} s in all", err=True)
    typer.echo("Your own: camtools explain PHOTO --model lite0 --out results/", err=True)


def _photos(names: list[str]) -> Image.Image:
    """Draw scikit-image's photographs, and the likeliest classes of the last."""
    from skimage import data

    from camtools.explainer import Explainer
    from camtools.images.preprocess import Preprocess
    from camtools.loading import load_model
    from camtools.plot import compare

    lite0 = load_model("lite0")
    known = lite0.preprocess
    assert isinstance(known, Preprocess)
    whole = Preprocess.imagenet(224, squash=True, mean=known.mean, std=known.std)  # nothing is cropped away
    photos = [data.chelsea(), data.camera(), data.stereo_motorcycle()[0], data.coffee()]
    explainers = [Explainer(lite0.model, name, transform=whole) for name in names]
    rows = [list(row) for row in zip(*(explainer(photos) for explainer in explainers), strict=True)]
    return compare([*rows, explainers[-1](photos[-1], top_k=TOP)], image=True)


def _scenes(names: list[str], count: int, seed: int) -> tuple[list[list[Any]], list[Any]]:
    """Explain scenes of the test split under each pipeline; return the explanations and the records."""
    from camtools.datasets import Scenes
    from camtools.datasets.scenes import scene_classifier
    from camtools.explainer import Explainer

    data = Scenes("test", n=count, seed=seed)
    records = [data[i] for i in range(count)]
    images, labels = [record.image for record in records], [record.label for record in records]
    return [Explainer(scene_classifier(), name, batch_size=64)(images, target=labels) for name in names], records


def _scene_rows(columns: list[list[Any]], records: list[Any], names: list[str]) -> Image.Image:
    """Draw the first scenes with the true boxes."""
    from camtools.plot import compare

    rows = [list(row) for row in zip(*(column[: len(records)] for column in columns), strict=True)]
    return compare(rows, titles=names, truth=[record.boxes for record in records], image=True)


def _save(drawn: Image.Image, out: Path) -> None:
    """Write an image."""
    from camtools.errors import InputError

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
