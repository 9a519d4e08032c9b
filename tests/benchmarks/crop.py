"""Which part of an image to show a model: top-1 and boxes under the model's own crop, squashed, padded and in full.

    python tests/benchmarks/crop.py --data "boxfolder:../shared/data/ilsvrc_woof/test?classes=imagenet" \
        --model torchvision/mobilenet_v2 --weights ../shared/weights/mobilenet_v2_imagenet.safetensors

Top-1: the likeliest class is one of the image's. Boxes: of every class of the image, explained as such, `box` has an
IoU of at least one half with a true box of that class (GT-known at the preset's own threshold); and the mean of that
IoU. Intervals are 95 % of a paired bootstrap over images against the model's own crop.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from ratios import table
from torchvision.ops import box_iou

import camtools
from camtools.datasets import open_dataset
from camtools.images.adjusted import with_crop

CROPS = ("model", "squash", "pad", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--pipeline", default="fast")
    parser.add_argument("--activation", default="softmax")
    wanted = parser.parse_args()
    data = open_dataset(wanted.data)
    found = {crop: scores(wanted, data, crop) for crop in CROPS}  # (images, 3): top-1, box, IoU
    rows = [(crop, *(cell(values, found["model"], column) for column in range(3))) for crop, values in found.items()]
    print(f"{wanted.data}, {wanted.model}, {wanted.pipeline}; {len(data)} images; per cent\n")
    print(table(("crop", "top-1", "GT-known@own", "mean IoU"), rows))


def scores(wanted: argparse.Namespace, data: Sequence[camtools.datasets.Record], crop: str) -> np.ndarray:
    loaded = camtools.load_model(wanted.model, wanted.weights)
    transform = with_crop(loaded.preprocess, crop)
    explainer = camtools.Explainer(
        loaded.model, wanted.pipeline, transform=transform, activation=wanted.activation, batch_size=16
    )
    records = ((index, data[index]) for index in range(len(data)))
    rows = []
    for _, record in records:
        found = explainer(record.image, target=record.classes)
        right = int(found[0].logits.argmax()) in record.classes
        best = [
            max(box_iou(exp.box[None].float(), record.boxes[record.labels == exp.label])[0].max().item(), 0.0)
            if exp.box is not None
            else 0.0
            for exp in found
        ]
        rows.append((float(right), float(np.mean([iou >= 0.5 for iou in best])), float(np.mean(best))))
    return np.array(rows)


def cell(values: np.ndarray, base: np.ndarray, column: int) -> str:
    difference = values[:, column] - base[:, column]
    chosen = np.random.default_rng(0).integers(0, len(difference), (1000, len(difference)))
    low, high = np.percentile(difference[chosen].mean(1), (2.5, 97.5))
    text = f"{values[:, column].mean():.1%}".rstrip("%")
    return text if values is base else f"{text} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
