"""How much longer a recipe's step takes than `gap`'s, and how busy reading keeps the model.

    python tests/benchmarks/recipes.py --recipes tap,wgap,minmaxcam --model torchvision/mobilenet_v2

Prints milliseconds per image of each recipe's step on random images, with its ratio to `gap`; then images per
second of a real epoch of `gap` as a share of a bare forward, backward and update on images that lie in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from PIL import Image

from camtools.datasets.base import ListedDataset
from camtools.datasets.record import Record
from camtools.datasets.selection import Selection
from camtools.loading import load_model
from camtools.training import Recipe, make_recipe
from camtools.training.augment import input_size
from camtools.training.data import Batch, TrainingSet
from camtools.training.trainer import Trainer, accelerated


class Noise(ListedDataset):
    """Images of noise as large as photographs on disk are, kept as JPEG in memory; as many of each class."""

    def __init__(self, count: int, classes: int, side: int) -> None:
        import io

        super().__init__((f"{i:06d}" for i in range(count)), [str(i) for i in range(classes)], None, "record")
        random = torch.Generator().manual_seed(0)
        small = torch.randint(0, 256, (32, 32, 3), generator=random, dtype=torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(small).resize((side, side)).save(file, "JPEG", quality=90)
        self.bytes = file.getvalue()

    def labels_of(self, index: int) -> list[int]:
        return [index % len(self.classes)]

    def record(self, index: int) -> Record:
        import io

        image = Image.open(io.BytesIO(self.bytes)).convert("RGB")
        return Record(image, torch.tensor(self.labels_of(index)), torch.zeros(0, 4), None, None, self.ids[index])


def made(name: str, args: argparse.Namespace, data: TrainingSet, accelerator: Any) -> tuple[Recipe, Trainer]:
    loaded = load_model(args.model, "random", num_classes=args.classes)
    recipe = make_recipe(
        name, {"batch_size": args.batch, "epochs": 1, "workers": args.workers, "mixed_precision": args.precision}
    )
    built = recipe.build(loaded.model, None)
    preprocess: Any = loaded.preprocess
    fast, shares = recipe.fast_parameters(built), recipe.multilabel is True
    return recipe, Trainer(recipe.config, built, fast, data, args.classes, shares, preprocess, accelerator)


def waited(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step_seconds(recipe: Recipe, trainer: Trainer, args: argparse.Namespace) -> list[float]:
    """Seconds per image of each step; the batch is the recipe's own size, S images per class one after another."""
    indices = recipe.batches(trainer.data.labels, 0)[0]
    size = input_size(trainer.config, trainer.preprocess)
    images = torch.randn(len(indices), 3, *size, device=trainer.device)
    labels = torch.tensor([trainer.data.labels[i][0] for i in indices], device=trainer.device)
    if trainer.shares:
        labels = torch.nn.functional.one_hot(labels, trainer.classes).float()
    seconds = []
    for _ in range(args.steps + 2):
        trainer.model.train()
        start = waited(trainer.device)
        recipe.step(trainer, Batch(images, labels, torch.tensor(indices)))
        seconds.append((waited(trainer.device) - start) / len(indices))
    return seconds[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="tap,wgap,minmaxcam")
    parser.add_argument("--model", default="torchvision/mobilenet_v2")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch", type=int, default=25, help="minmaxcam's own is 25")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=500, help="pixels per side of the stored images")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    args = parser.parse_args()
    data = TrainingSet(Selection(Noise(max(args.images, 5 * args.classes), args.classes, args.side)))
    with accelerated(args.precision, None) as accelerator:
        pairs = {name: made(name, args, data, accelerator) for name in ("gap", *args.recipes.split(","))}
        times: dict[str, list[float]] = {name: [] for name in pairs}
        for _ in range(3):  # in turn, so that whatever else the machine does meets all of them
            for name, (recipe, trainer) in pairs.items():
                times[name] += step_seconds(recipe, trainer, args)
        base = statistics.median(times["gap"])
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            print(f"{name:12} {1000 * middle:8.3f} ms per image, {middle / base:.2f} x gap")
        recipe, trainer = pairs["gap"]
        batches = trainer.own_batches(recipe.batches(data.labels, 0))
        count = sum(map(len, batches))
        start = waited(accelerator.device)
        for batch in trainer.epoch_batches(batches):
            trainer.learn(batch, recipe.step)
        speed = count / (waited(accelerator.device) - start)
        print(f"an epoch of {count} images: {speed:.1f} images/s, {speed * base:.2f} of the bare step's")


if __name__ == "__main__":
    main()
