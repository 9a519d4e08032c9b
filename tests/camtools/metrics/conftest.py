"""Real maps for the box metrics."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camtools


@pytest.fixture(scope="session")
def real_maps(shared: Path) -> dict[str, Any]:
    """Class maps of MobileNetV2 on 10 ILSVRC validation images: maps (10, 7, 7), boxes, sizes, logits, labels."""
    spec = importlib.util.spec_from_file_location("shared_load", shared / "weights" / "load.py")
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    model, mean, std = loading.classifier("mobilenet_v2")
    rows: dict[str, list[dict[str, str]]] = {}
    with (shared / "data" / "ilsvrc_val" / "test.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["file"], []).append(row)
    chosen = dict(list(rows.items())[:10])
    images = [Image.open(shared / "data" / "ilsvrc_val" / "test" / name).convert("RGB") for name in chosen]
    pixels = np.stack([np.asarray(image.resize((224, 224)), dtype=np.float32) / 255 for image in images])
    inputs = (torch.from_numpy(pixels) - torch.tensor(mean)) / torch.tensor(std)
    labels = torch.tensor([int(objects[0]["class"]) for objects in chosen.values()])
    with torch.no_grad():
        found = camtools.wrap(model).activations(inputs.permute(0, 3, 1, 2))
        maps = torch.einsum("bc,bchw->bhw", model.classifier[1].weight[labels], found.features)
    return {
        "maps": maps,
        "boxes": [
            torch.tensor([[float(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in objects])
            for objects in chosen.values()
        ],
        "sizes": [image.size for image in images],
        "logits": found.logits,
        "labels": labels,
    }
