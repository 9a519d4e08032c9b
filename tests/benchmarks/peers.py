"""Other libraries' methods on the same network and images: their maps as files, and one call of each to time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from camtools.classes.matching import match_classes
from camtools.datasets.selection import Selection
from camtools.evaluation.protocol import Protocol
from camtools.evaluation.sample import prepare
from camtools.images.preprocess import Transform

Peer = Callable[[Tensor, list[int]], Tensor]
"""From inputs (B, 3, H, W) and a class for each to maps (B, h, w)."""


def peer(name: str, model: nn.Module, layer: str) -> Peer:
    """Return a method of another library, with its own defaults.

    Args:
        name: "grad-cam:LayerCAM" of pytorch-grad-cam, or "torchcam:LayerCAM".
        model: A classifier in eval mode.
        layer: Dotted name of the target layer.
    """
    library, _, method = name.partition(":")
    if library == "grad-cam":
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def maps(x: Tensor, classes: list[int]) -> Tensor:
            with getattr(pytorch_grad_cam, method)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
                return torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(k) for k in classes]))

        return maps
    import torchcam.methods

    def maps_of_torchcam(x: Tensor, classes: list[int]) -> Tensor:
        with getattr(torchcam.methods, method)(model, target_layer=layer) as extractor:
            scores = model(x)
            return extractor(classes, scores)[0]

    return maps_of_torchcam


def write_maps(
    peers: dict[str, Peer], data: Selection, transform: Transform, classes: int, batch: int, out: Path
) -> dict[str, Path]:
    """Write the maps of each image's own class under the WSOL protocol, those that are not there yet.

    Args:
        peers: By name.
        data: The images.
        transform: The model's own.
        classes: How many the model has.
        batch: Images per call.
        out: Where a folder per peer comes, with `IMAGE_ID.npy` in it.

    Returns:
        The folders, by name.
    """
    own = match_classes(data.classes, data.occurring, classes, None)
    squash = Protocol.of("wsol", transform).transform
    folders = {name: out / name.replace(":", "-") for name in peers}
    for start in range(0, len(data.indices), batch):
        samples = [prepare(data.data[index], index, own, squash) for index in data.indices[start : start + batch]]
        inputs = torch.stack([sample.tensor for sample in samples if sample.tensor is not None])
        labels = [sample.truths[0].label for sample in samples]
        for name, folder in folders.items():
            files = [folder / f"{sample.id}.npy" for sample in samples]
            if all(file.exists() for file in files):
                continue
            for file, values in zip(files, peers[name](inputs, labels), strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, values.detach().cpu().numpy())
    return folders
