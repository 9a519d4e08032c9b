"""What MaxBoxAcc and MaxBoxAccV2 cost beside the reference protocol's loop: ratios within interleaved rounds.

    python tests/benchmarks/box_metrics.py                  # needs ../shared for real maps
    python tests/benchmarks/box_metrics.py --random         # smooth random maps instead

Both start from class maps at feature resolution (7 x 7) on the CPU and end with hits at 1,000 thresholds for
IoU 0.5 (largest contour) and 0.3, 0.5, 0.7 (all contours). The reference runs as its authors' code does: bicubic
resize, normalisation, then for each threshold a mask, contours and a box, and the IoU of all boxes at once; once for
either metric. OpenCV and torch use one thread. Times are of the processor, not of the wall, so that other work on the
machine counts less.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from ratios import interleave, ratio, table
from torch import Tensor

import camtools
from camtools.metrics import MaxBoxAcc, MaxBoxAccV2, box_ious, scoremaps

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
Truth = tuple[list[Tensor], list[tuple[int, int]]]


def real_maps(count: int) -> tuple[Tensor, Truth]:
    """Class maps of MobileNetV2 on ILSVRC validation images: (count, 7, 7), boxes and sizes."""
    from PIL import Image

    sys.path.insert(0, str(SHARED / "weights"))
    from load import classifier

    model, mean, std = classifier("mobilenet_v2")
    rows: dict[str, list[dict[str, str]]] = {}
    with (SHARED / "data" / "ilsvrc_val" / "test.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["file"], []).append(row)
    maps, boxes, sizes = [], [], []
    for name, objects in list(rows.items())[:count]:
        image = Image.open(SHARED / "data" / "ilsvrc_val" / "test" / name).convert("RGB")
        pixels = torch.from_numpy(np.array(image.resize((224, 224)), dtype=np.float32) / 255)
        inputs = ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]
        with torch.no_grad():
            maps.append(camtools.wrap(model).maps(inputs, int(objects[0]["class"]))[0, 0])
        boxes.append(torch.tensor([[float(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in objects]))
        sizes.append(image.size)
    return torch.stack(maps), (boxes, sizes)


def random_maps(count: int) -> tuple[Tensor, Truth]:
    """Random maps (count, 7, 7), one box in the middle."""
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[60.0, 50.0, 170.0, 180.0]])
    return torch.randn(count, 7, 7, generator=generator), ([box] * count, [(227, 227)] * count)


def reference(maps: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]], all_contours: bool) -> np.ndarray:
    """The protocol's loop over 1,000 thresholds; returns hits (IoU, thresholds)."""
    taus = list(np.arange(0, 1, 0.001))
    ious = (0.3, 0.5, 0.7) if all_contours else (0.5,)
    hits = np.zeros((len(ious), len(taus)))
    for score, box, size in zip(maps.double().numpy(), boxes, sizes, strict=True):
        score = cv2.resize(score, (224, 224), interpolation=cv2.INTER_CUBIC)
        score = score - score.min()
        levels = np.expand_dims((score / score.max() * 255).astype(np.uint8), 2)
        found, counts = [], []
        for tau in taus:
            mask = cv2.threshold(levels, int(tau * np.max(levels)), 255, cv2.THRESH_BINARY)[1]
            contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if not all_contours:
                contours = [max(contours, key=cv2.contourArea)]
            for contour in contours:
                x, y, w, h = cv2.boundingRect(contour)
                found.append([x, y, min(x + w, 223), min(y + h, 223)])
            counts.append(len(contours))
        truth = (box.double().numpy() * 224 / np.array([*size, *size])).astype(int)
        a, b = np.array(found)[:, None], truth[None]
        sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
        common = np.maximum(sides, 0).prod(-1)
        areas = [(each[..., 2:] - each[..., :2] + 1).prod(-1) for each in (a, b)]
        best = (common / (areas[0] + areas[1] - common)).max(1)
        best = np.maximum.reduceat(best, np.cumsum([0, *counts[:-1]]))
        hits += best >= np.array(ious)[:, None]
    return hits


def ours(maps: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]], interval: float = 0.001) -> list[Tensor]:
    """Both metrics, the boxes compared once; returns accuracies at the thresholds, per cent."""
    one, several = MaxBoxAcc(interval=interval), MaxBoxAccV2(interval=interval)
    found = box_ious(scoremaps(maps), boxes, sizes, workers=1)
    one.update_ious(found.largest)
    several.update_ious(found.any)
    return [one.curve().accuracy[None], several.curve().accuracy]


def separately(maps: Tensor, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Both metrics, each on its own."""
    metrics = MaxBoxAcc(workers=1), MaxBoxAccV2(workers=1)
    for metric in metrics:
        metric.update(maps, boxes, sizes)
    return [metric.compute() for metric in metrics]


def evaluate_quietly(data: tuple[Tensor, list[Tensor], list[tuple[int, int]]]) -> None:
    torch.set_num_threads(1)
    ours(*data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="maps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", action="store_true", help="random maps instead of real ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    maps, (boxes, sizes) = (random_maps if options.random else real_maps)(options.count)
    data = (maps, boxes, sizes)
    first = ours(*data)  # compiles
    expected = [reference(*data, all_contours) * 100.0 / len(maps) for all_contours in (False, True)]
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(first, expected, strict=True)), "the two disagree"
    seconds = interleave(
        {
            "reference loop, both metrics": lambda: [reference(*data, all_contours) for all_contours in (False, True)],
            "both metrics, boxes compared once": lambda: ours(*data),
            "both metrics, separately": lambda: separately(*data),
            "both metrics, 10 thresholds": lambda: ours(*data, interval=0.1),
            "both metrics, 100,000 thresholds": lambda: ours(*data, interval=0.00001),
        },
        rounds=options.rounds,
        clock=time.process_time,
    )
    print(f"{len(maps)} maps, {options.rounds} rounds; results agree exactly\n")
    rows = [(name, f"{min(times) / len(maps) * 1e3:.2f}") for name, times in seconds.items()]
    print(table(("what", "ms a map (best round)"), rows), end="\n\n")
    loop, shared, apart, few, many = seconds.values()
    rates = [
        ratio("reference / ours, boxes compared once", loop, shared, 10, "at least"),
        ratio("reference / ours, separately", loop, apart, 10, "at least"),
        ratio("100,000 thresholds / 10", many, few),
    ]
    print(table(("ratio", "median", "range", "aim", "met"), [rate.row() for rate in rates]), end="\n\n")
    parts = [(maps.repeat(5, 1, 1), boxes * 5, sizes * 5)] * 2
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(evaluate_quietly, parts))  # starts and loads
        wall = interleave(
            {
                "one process": lambda: [evaluate_quietly(part) for part in parts],
                "two processes": lambda: list(pool.map(evaluate_quietly, parts)),
            },
            rounds=options.rounds,
        )
    rate = ratio("one process / two processes, wall clock", wall["one process"], wall["two processes"])
    print(table(("ratio", "median", "range", "aim", "met"), [rate.row()]))


if __name__ == "__main__":
    main()
