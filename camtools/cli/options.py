"""Options that several commands have, each as one annotated type, and the readers of their values."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from camtools.checks import literal


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read "0.5" or "0.485,0.456,0.406".

    Raises:
        typer.BadParameter: It is something else.
    """
    try:
        return tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number, nor numbers with commas such as 0.485,0.456,0.406"
        ) from None


def parse_size(text: str) -> tuple[int, int]:
    """Read "224" or "224x320" as (height, width).

    Raises:
        typer.BadParameter: It is something else, or not positive.
    """
    match = re.fullmatch(r"(\d+)(?:[xX,](\d+))?", text.strip())
    if match is None or 0 in (height := int(match[1]), width := int(match[2] or match[1])):
        raise typer.BadParameter(f"{text!r} is not a size: say 224, or HEIGHTxWIDTH such as 224x320")
    return height, width


def parse_model_arg(text: str) -> tuple[str, Any]:
    """Read "KEY=VALUE"; the value is a Python literal where it reads like one, else text.

    Raises:
        typer.BadParameter: It lacks its key or "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, literal(value)


def parse_place(text: str) -> int | str:
    """Read a position such as "1", or a key."""
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else text.strip()


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


class Crop(StrEnum):
    """What the model is shown of an image."""

    SQUASH = "squash"
    PAD = "pad"
    FULL = "full"
    MODEL = "model"


class Precision(StrEnum):
    """What the forward computes in."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    AUTO = "auto"


class Activation(StrEnum):
    """How logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class OverlayFormat(StrEnum):
    """What overlays are written as."""

    JPG = "jpg"
    PNG = "png"


class Progress(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    PLAIN = "plain"


def parse_save(text: str) -> tuple[str, ...]:
    """Read "overlay,mask" or "none".

    Raises:
        typer.BadParameter: A word is none of those.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    wrong = [word for word in words if word not in ("overlay", "mask", "map", "crops", "none")]
    if wrong or not words or ("none" in words and len(words) > 1):
        raise typer.BadParameter(f"{text!r}: say none, or any of overlay,mask,map,crops with commas between them")
    return () if words == ("none",) else words


_model = typer.Option(metavar="NAME", help="timm/NAME, torchvision/NAME, package.module:function, or FILE.py:function.")
Paths = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Images, folders (with sub-folders), or patterns: 'a/*.jpg'.")
]
Model = Annotated[str, _model]
OptionalModel = Annotated[str | None, _model]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Checkpoint, .safetensors or .pth; the number of classes is read from it. 'random' for none; "
        "torchvision's own names (IMAGENET1K_V1) work too. Left out, published weights are downloaded.",
    ),
]
ModelArgs = Annotated[
    list[Any] | None,
    typer.Option(
        metavar="KEY=VALUE",
        parser=parse_model_arg,
        help="Keyword argument for the model's constructor or function, such as pad_type=same. May be repeated.",
    ),
]
Mean = Annotated[
    Any,
    typer.Option(metavar="R,G,B", parser=parse_numbers, help="Mean of images in [0, 1], instead of the model's own."),
]
Std = Annotated[
    Any, typer.Option(metavar="R,G,B", parser=parse_numbers, help="Standard deviation, instead of the model's own.")
]
Size = Annotated[
    Any,
    typer.Option(
        metavar="N|HxW", parser=parse_size, help="Input size in pixels, instead of the model's own: 224, or 224x320."
    ),
]
ClassNames = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Names of the model's classes: one per line, or a JSON list.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where results go, a folder per image, and manifest.json over all. A result that is there already is "
        "replaced as a whole. Left out, nothing is written.",
    ),
]
Export = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="Write results in another format too: coco.json, labels.csv, results.parquet, label-studio.json, "
        "yolo:DIR, voc:DIR or fiftyone:NAME; or FORMAT:PLACE. May be repeated.",
    ),
]
Report = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.html",
        help="Write a page for the browser: every image with its classes, and a slider that moves the threshold.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Leave out images whose result in --out is whole and newer than the image."),
]
Logits = Annotated[
    Any,
    typer.Option(
        "--output",
        metavar="N|KEY",
        parser=parse_place,
        help="Which of the model's outputs holds the class scores: a position from 0, or a key. Left out, it is "
        "looked for.",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images per forward.")]
Output = Annotated[
    Format,
    typer.Option(
        "--format",
        help="What stdout gets: a table (above 20 images a summary), one JSON document, or a JSON line per image as "
        "soon as it is done. The rest goes to stderr.",
    ),
]
CropOption = Annotated[
    Crop | None,
    typer.Option(
        "--crop",
        help="What the model is shown: the whole image squashed to its size, padded to it, in full with the short side "
        "at its size, or what its own preprocessing leaves (model). Left out, explain squashes and segment takes the "
        "model's.",
    ),
]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="Of the forward; bf16 is autocast, auto takes it where it is fast.")
]
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|N",
        help="Threshold instead of the pipeline's own: a fraction of the map's maximum such as 0.35, or the "
        "threshold.json that 'camtools evaluate --calibrate' has written.",
    ),
]
ActivationOption = Annotated[
    Activation | None,
    typer.Option(
        "--activation",
        help="How logits become scores: softmax; sigmoid for multi-label models and single logits; none for a number "
        "that is no logit. Left out, it goes by the model's output.",
    ),
]
Save = Annotated[
    Any,
    typer.Option(
        "--save",
        metavar="WORDS",
        parser=parse_save,
        help="What is written beside the manifest: any of overlay,mask,map,crops, or none.  "
        "[default: overlay,mask,map]",
    ),
]
OverlaySize = Annotated[
    int, typer.Option(min=0, metavar="N", help="Longest side of overlays in pixels; 0: that of the image.")
]
OverlayFormatOption = Annotated[OverlayFormat, typer.Option("--overlay-format", help="Of overlays and crops.")]
ProgressOption = Annotated[
    Progress,
    typer.Option("--progress", help="auto: a bar, on terminals; plain: a line now and then, for logs."),
]
Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read images, and that save results.")]


def looks(save: tuple[str, ...] | None, overlay_size: int, overlay_format: OverlayFormat) -> dict[str, Any]:
    """Return the options of `ImageResult.save`."""
    return {"files": save, "overlay_size": overlay_size or None, "overlay_format": overlay_format.value}


def told(**values: Any) -> dict[str, Any]:
    """Return settings that decide results, those at their default left out: older runs do not name them."""
    return {name: value for name, value in values.items() if value not in (None, "float32")}
