"""Trains the classifier that comes with camtools: `python tests/benchmarks/train_scene_classifier.py --help`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from camtools.datasets.scenes.dataset import Scenes
from camtools.datasets.scenes.network import SceneNet
from camtools.files import replacing
from camtools.progress import progress_bar

CLOSE_UP = 48  # pixels per side

console = Console(stderr=True)


class Drawn(NamedTuple):
    """Scenes of one split, drawn and kept.

    Attributes:
        scenes: (N, 3, H, W) uint8.
        close_ups: (N, 3, 48, 48) uint8, one head each.
        labels: (N,) int64.
    """

    scenes: Tensor
    close_ups: Tensor
    labels: Tensor


class Plan(NamedTuple):
    """How to train; the fields are the options of the command."""

    images: int
    close_up_epochs: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    bf16: bool
    device: str


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results; a run that was stopped goes on from there.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the training, separated by commas.")] = "0,1,2",
    images: Annotated[int, typer.Option(help="Training scenes.")] = 12_000,
    close_up_epochs: Annotated[int, typer.Option(help="Passes over close-ups of the heads, first.")] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over whole scenes, then.")] = 6,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    lr: Annotated[
        float, typer.Option(help="Peak learning rate (AdamW, one cycle per stage); half of it on scenes.")
    ] = 4e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.05,
    bf16: Annotated[bool, typer.Option(help="Train in mixed precision, for processors that have it.")] = False,
    device: Annotated[str, typer.Option(help="Where to train.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that draw scenes.")] = os.cpu_count() or 1,
) -> None:
    """Train one classifier per seed on `Scenes("train")`; say how many scenes of the test split each gets right.

    Like most classifiers people have, it is pretrained on easier images, close-ups of the heads, and fine-tuned with
    image labels only. (From scratch, average pooling takes long to find a head on 1/50 of the image.) The last
    epoch is taken; "val" is only watched, and "test" plays no part.
    """
    plan = Plan(images, close_up_epochs, epochs, batch_size, lr, weight_decay, bf16, device)
    out.mkdir(parents=True, exist_ok=True)
    train = draw(Scenes("train", images), workers)
    val, test = draw(Scenes("val"), workers), draw(Scenes("test"), workers)
    for seed in map(int, seeds.split(",")):
        path = out / f"seed{seed}.safetensors"
        model = train_one(train, val, seed, plan, out / f"seed{seed}.pt")
        save_file({name: _half(value) for name, value in model.state_dict().items()}, path)
        model.load_state_dict(load_file(path))  # what is judged is what is kept
        right = accuracy(model, test.scenes, test.labels)
        print(
            f"seed {seed}: top-1 {right:.2%} on {len(test.labels)} test scenes; {path}, {path.stat().st_size:,} bytes"
        )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, (N, 3, H, W) uint8, whose class, (N,), the model finds."""
    device = next(model.parameters()).device
    hits = [
        (model(normalised(x.to(device))).argmax(dim=1).cpu() == y).sum()
        for x, y in zip(images.split(100), labels.split(100), strict=True)
    ]
    return float(torch.stack(hits).sum()) / len(labels)


def normalised(images: Tensor) -> Tensor:
    """Turn uint8 images, (B, 3, H, W), into what `SceneNet` expects."""
    mean, std = SceneNet.preprocess.mean[0], SceneNet.preprocess.std[0]
    return ((images.float() / 255 - mean) / std).to(memory_format=torch.channels_last)


def train_one(train: Drawn, val: Drawn, seed: int, plan: Plan, path: Path) -> SceneNet:
    """Train one classifier, in eval mode when done.

    Args:
        train: What to learn from.
        val: What to report on after every epoch.
        seed: Of the weights and the order of the images.
        plan: How.
        path: Where the state after every epoch is kept; what lies there is carried on.
    """
    torch.manual_seed(seed)
    model = SceneNet().to(memory_format=torch.channels_last).to(plan.device)
    saved = torch.load(path, map_location=plan.device, weights_only=True) if path.exists() else {}
    if saved and saved["recipe"] != list(plan):
        raise SystemExit(f"{path} is of a run with other options ({saved['recipe']}): choose another folder")
    stages = (("close-ups", plan.close_up_epochs, plan.lr), ("scenes", plan.epochs, plan.lr / 2))
    for number, (stage, epochs, lr) in enumerate(stages):
        images, watched = (train.close_ups, val.close_ups) if stage == "close-ups" else (train.scenes, val.scenes)
        steps = len(images) // plan.batch_size
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=plan.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        if saved and saved["stage"] > number:
            continue
        done = saved["epochs"] if saved else 0
        for name, part in parts.items() if saved else ():
            part.load_state_dict(saved[name])
        saved = {}
        for epoch in range(done, epochs):
            random = np.random.RandomState([seed, number, epoch])
            loss = _epoch(model, batches(images, train.labels, plan, random), optimizer, schedule, plan)
            right = accuracy(model.eval(), watched, val.labels)
            console.print(f"seed {seed} {stage} {epoch + 1}/{epochs}: loss {loss:.3f}, val {right:.2%}")
            states = {name: part.state_dict() for name, part in parts.items()}
            with replacing(path) as partial:
                torch.save({"recipe": list(plan), "stage": number, "epochs": epoch + 1, **states}, partial)
    return model.eval()


def _epoch(model: SceneNet, pairs: Iterator[tuple[Tensor, Tensor]], optimizer: Any, schedule: Any, plan: Plan) -> float:
    """Go through all images once; return the mean loss."""
    model.train()
    losses = []
    for x, y in pairs:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=plan.bf16):
            loss = nn.functional.cross_entropy(model(normalised(x)), y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def batches(
    images: Tensor, labels: Tensor, plan: Plan, random: np.random.RandomState
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches; each is turned and mirrored as a whole, which changes no class."""
    order = torch.from_numpy(random.permutation(len(images)))
    for chosen in order.split(plan.batch_size)[: len(order) // plan.batch_size]:
        x = torch.rot90(images[chosen], random.randint(4), (2, 3))
        yield (x.flip(3) if random.randint(2) else x).to(plan.device), labels[chosen].to(plan.device)


class _WithCloseUps(Dataset[Any]):
    """Scenes with a close-up of the first creature's head, as tensors."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        scene = self.scenes.draw(index)
        creature = scene.creatures[0]
        random = np.random.RandomState([self.scenes.seed, index])
        side = len(scene.pixels)
        (x, y), radius = creature.pose.nose, creature.pose.head
        half = radius * random.uniform(1.3, 3)
        x, y = (place + radius * random.uniform(-0.5, 0.5) for place in (x, y))
        low, high = (max(x - half, 0.0), max(y - half, 0.0)), (min(x + half, 1.0), min(y + half, 1.0))
        window = side * low[0], side * low[1], side * high[0], side * high[1]
        image = Image.fromarray(scene.pixels)
        close_up = image.resize((CLOSE_UP, CLOSE_UP), Image.Resampling.BILINEAR, box=window)
        return _bytes(image), _bytes(close_up), creature.label


def draw(scenes: Scenes, workers: int) -> Drawn:
    """Draw all scenes, and their close-ups, in several processes."""
    drawn: list[Any] = []
    with progress_bar(len(scenes), f"Drawing {scenes.split}", unit="scenes") as advance:
        for batch in DataLoader(_WithCloseUps(scenes), 100, num_workers=workers):
            drawn.append(batch)
            advance(len(batch[0]))
    return Drawn(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def _bytes(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _half(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).cpu().contiguous()


if __name__ == "__main__":
    typer.run(main)
