r"""How good semantic masks from image labels are: mean IoU of `camtools.segment`, with and without a CRF.

    python tests/benchmarks/segmentation.py --data "scenes:test?n=200&objects=1-3" --model scenes
    python tests/benchmarks/segmentation.py --data boxfolder:../shared/data/voc5/test --model torchvision/mobilenet_v2 \
        --weights voc5.safetensors --activation sigmoid

The truth is the data set's masks. Where it has none it is the boxes, filled, the smaller in front of the larger: such
a truth holds much background, so it favours wide masks, and punishes those that follow an object's outline.
`--backgrounds` and `--kernels` try several, to choose by on images of the calibration half; a kernel is
SXY,COMPAT,SXY,SRGB,COMPAT of the smoothness and the appearance kernel, or "none" for no CRF. `--given` looks for the
classes that are in the image instead of those that the classifier sees.

The weights of the second are made by `tests/benchmarks/linear_classifier.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

import camtools
from camtools.datasets import Record, open_dataset
from camtools.images.preprocess import Preprocess
from camtools.metrics import MeanIoU
from camtools.progress import progress_bar
from camtools.segmenter import BACKGROUND, Segmenter, default_crf
from camtools.steps import CRF


def main() -> None:
    wanted = parse()
    data = open_dataset(wanted.data)
    step = max(1, len(data) // wanted.n) if wanted.n else 1
    chosen = range(0, len(data), step)[: wanted.n]
    loaded = camtools.load_model(wanted.model, wanted.weights)
    transform = loaded.preprocess
    if isinstance(transform, Preprocess):  # no image loses its edges to a crop
        transform = replace(transform, resize=transform.input_size, crop_mode="squash")
    settings = [(p, k, b) for p in wanted.pipelines for k in wanted.kernels for b in wanted.backgrounds]
    segmenters = {
        key: Segmenter(
            loaded.model,
            key[0],
            background=key[2],
            crf=key[1],
            activation=wanted.activation,
            min_score=wanted.min_score,
            device=wanted.device,
            transform=transform,
            class_names=data.classes,
        )
        for key in settings
    }
    scores = {key: MeanIoU(len(data.classes) + 1) for key in settings}
    with progress_bar(len(chosen) * len(settings), "Segmenting", True) as advance:
        for records in batches((data[i] for i in chosen), 16):
            truths = [truth(record) for record in records]
            classes = [record.classes for record in records] if wanted.given else None
            for key in settings:
                found = segmenters[key]([record.image for record in records], classes=classes)
                scores[key].update([one.mask.cpu() for one in found], truths)
                advance(len(records))
    kind = "masks" if data[0].masks is not None else "filled boxes"
    print(f"{len(chosen)} images of {wanted.data}, truth: {kind}")
    print("| pipeline | CRF | background | mean IoU | of the classes | of the background |")
    print("|---|---|---|---|---|---|")
    for (pipeline, crf, background), metric in scores.items():
        ious = metric.per_class()
        objects = [iou for label, iou in ious.items() if label]
        print(
            f"| {pipeline} | {described(crf)} | {'pipeline' if background is None else background} "
            f"| {metric.compute():.1f} | {sum(objects) / len(objects):.1f} | {ious[0]:.1f} |"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--activation", default="softmax", choices=["softmax", "sigmoid"])
    parser.add_argument("--min-score", type=float)
    parser.add_argument("--pipelines", nargs="+", default=["cam", "rcam"])
    parser.add_argument("--backgrounds", nargs="+", type=level, default=[BACKGROUND], metavar="B|pipeline")
    parser.add_argument("--kernels", nargs="+", type=kernel, default=[None, default_crf()], metavar="K|none")
    parser.add_argument("--n", type=int, help="images, spread evenly; all by default")
    parser.add_argument("--given", action="store_true", help="the image's true classes, not the classifier's")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def level(text: str) -> float | None:
    return None if text == "pipeline" else float(text)


def kernel(text: str) -> CRF | None:
    if text == "none":
        return None
    sxy, compat, far, srgb, strength = map(float, text.split(","))
    return CRF(gaussian=(sxy, compat), bilateral=(far, srgb, strength))


def described(crf: CRF | None) -> str:
    return "-" if crf is None else f"{crf.gaussian} {crf.bilateral}"


def batches(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    while batch := list(islice(records, size)):
        yield batch


def truth(record: Record) -> Tensor:
    """Return the class of every pixel, (H, W) int64: by the masks, else by the boxes, the smaller in front."""
    if record.masks is not None:
        return record.semantic()
    width, height = record.size
    found = torch.zeros(height, width, dtype=torch.int64)
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    for i in sides.prod(1).argsort(descending=True).tolist():
        x0, y0, x1, y1 = record.boxes[i].round().int().tolist()
        found[y0:y1, x0:x1] = int(record.labels[i]) + 1
    return found


if __name__ == "__main__":
    main()
