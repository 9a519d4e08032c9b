r"""Draw the images of docs/methods: two photographs, each without a method and with it.

    python docs/images/methods.py --model torchvision/mobilenet_v2 --weights FILE

The photographs come with scikit-image, where they are in the public domain (CC0). They
are squashed to the model's input size, so that all of each is seen. `--only NAME`
(repeatable) draws some.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from skimage import data

import camtools
from camtools import Explanation, Preprocess
from camtools.steps import (
    CREAM,
    CRF,
    IVR,
    NWC,
    AbsoluteNegative,
    AdaptiveThreshold,
    Affinity,
    EdgeLevel,
    Enlarge,
    FixedThreshold,
    Gradient,
    MinMax,
    PaS,
    RangeThreshold,
    Step,
)

PHOTOGRAPHS = ((data.coffee, "espresso"), (data.camera, "tripod"))
"""The function that returns a photograph, and the class to look for in it."""

Columns = dict[str, str | Sequence[Step]]

CRF_KERNELS = {
    "gaussian": (3, 1),
    "bilateral": (80, 13, 2),
    "backend": "torch",
    "scale": 0.25,
}

METHODS: dict[str, Columns] = {
    # Maps are compared under one threshold rule, or at those that were best on ILSVRC;
    # docs/methods says which.
    "nwc": {
        "cam, 40 %": [FixedThreshold(0.4)],
        "NWC, 40 %": [NWC(), FixedThreshold(0.4)],
    },
    "absolute-negative": {
        "cam, 40 %": [FixedThreshold(0.4)],
        "AbsoluteNegative, 40 %": [AbsoluteNegative(), FixedThreshold(0.4)],
    },
    "ivr": {
        "cam, 20 %": [MinMax(), FixedThreshold(0.2)],
        "IVR(45), 20 %": [IVR(45), FixedThreshold(0.2)],
    },
    "pas": {
        "cam, 45 % of the maximum": [FixedThreshold(0.45)],
        "45 % of the percentile": [PaS(98, 0.45)],
    },
    "adaptive-threshold": {
        "cam, 20 %": "cam",
        '"first"': [AdaptiveThreshold("first")],
        '"largest"': [AdaptiveThreshold("largest")],
    },
    "cream": {
        "cam, 41 %": [FixedThreshold(0.41)],
        "CREAM, 54 %": [CREAM(), FixedThreshold(0.54)],
        "centred, 50 %": [CREAM(centre=True), FixedThreshold(0.5)],
    },
    "crf": {
        "cam, 40 %": [FixedThreshold(0.4)],
        "CRF at 40 %": [
            MinMax(),
            CRF(background=0.4, **CRF_KERNELS),
            FixedThreshold(0.5),
        ],
    },
    "affinity": {
        "cam, 41 %": [FixedThreshold(0.41)],
        "Affinity(2, 3), 49 %": [Affinity(2, 3), FixedThreshold(0.49)],
    },
    "gradient": {
        "cam, 41 %": [FixedThreshold(0.41)],
        'Gradient("product", 1), 25 %': [Gradient("product", 1), FixedThreshold(0.25)],
        "levels 0, 1 and 2, 25 %": [
            Gradient("product", (0, 1, 2)),
            FixedThreshold(0.25),
        ],
    },
    "edge-level": {
        "Gradient, Affinity, 48 %": [
            Gradient("product", (0, 1, 2)),
            Affinity(2, 3),
            FixedThreshold(0.48),
        ],
        "EdgeLevel, 48 %": [
            Gradient("product", (0, 1, 2)),
            Affinity(2, 3),
            EdgeLevel(),
            FixedThreshold(0.48),
        ],
    },
    "enlarge": {
        "cam, 40 %": [FixedThreshold(0.4)],
        "Enlarge(1.43), 40 %": [Enlarge(1.43), FixedThreshold(0.4)],
    },
    "range-threshold": {
        "Affinity(2, 2), 20 %": [Affinity(2, 2), FixedThreshold(0.2)],
        "30 % above the percentile": [Affinity(2, 2), RangeThreshold(30, 0.3)],
    },
    "presets": {name: name for name in camtools.PRESETS},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="torchvision/mobilenet_v2")
    parser.add_argument(
        "--weights", help="checkpoint; left out, the published weights are downloaded"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted(METHODS),
        help="draw this one; repeatable",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "methods")
    wanted = parser.parse_args()
    loaded = camtools.load_model(wanted.model, wanted.weights)
    if not isinstance(loaded.preprocess, Preprocess):
        parser.error(
            f"{wanted.model} brings a preprocessing of its own, which can't be told to "
            "show all of an image"
        )
    mean, std = loaded.preprocess.mean, loaded.preprocess.std
    squash = Preprocess(
        resize=loaded.preprocess.input_size or (224, 224),
        mean=mean,
        std=std,
        crop_mode="squash",
    )
    wanted.out.mkdir(parents=True, exist_ok=True)
    for name in wanted.only or METHODS:
        path = wanted.out / f"{name}.jpg"
        drawn(METHODS[name], loaded, squash).save(path, quality=82, optimize=True)
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


def drawn(
    columns: Columns, loaded: camtools.sources.LoadedModel, transform: Preprocess
) -> Image.Image:
    """Return a figure with one row per photograph and one column per pipeline."""
    photographs = [make() for make, _ in PHOTOGRAPHS]
    targets = [name for _, name in PHOTOGRAPHS]
    rows: list[list[Explanation]] = [[] for _ in PHOTOGRAPHS]
    for pipeline in columns.values():
        explainer = camtools.Explainer(
            loaded.model,
            pipeline,
            transform=transform,
            class_names=loaded.class_names,
            batch_size=1,
        )
        for row, photograph, target in zip(rows, photographs, targets, strict=True):
            row.append(explainer(photograph, target=target))
    if len(columns) > 3:  # the presets, whose names are their titles
        rows = [
            row[start : start + 4] for row in rows for start in range(0, len(row), 4)
        ]
        return camtools.plot.compare(rows, height=120)
    height = 160 if len(columns) == 2 else 120
    return camtools.plot.compare(rows, titles=list(columns), image=True, height=height)


if __name__ == "__main__":
    main()
