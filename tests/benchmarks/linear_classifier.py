r"""Gives a classifier other classes: a linear layer on its frozen features, trained on a data set's image labels.

    python tests/benchmarks/linear_classifier.py --data boxfolder:../shared/data/voc5/train \
        --model torchvision/mobilenet_v2 --weights ../shared/weights/mobilenet_v2_imagenet.safetensors \
        --out voc5.safetensors

There are no weights for VOC's classes here, and evaluating a classifier on them needs one. Several classes per image
are learnt as that (binary cross-entropy). Images are squashed to the model's input, as the WSOL protocol does, and
seen once as they are and once mirrored.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import v2

import camtools
from camtools.datasets import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=300, help="steps over all features at once")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    loaded = camtools.load_model(arguments.model, arguments.weights)
    size = loaded.preprocess.input_size
    known = replace(loaded.preprocess, resize=size, crop_mode="squash")
    to_input = v2.Compose(
        [v2.Resize(size), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(known.mean, known.std)]
    )
    data = open_dataset(arguments.data, transform=to_input, target="labels")
    cam_model = camtools.wrap(loaded.model)
    if not cam_model.decomposition.exact:
        raise SystemExit(f"{arguments.model} has more than average pooling and a linear layer after its features")
    features, labels = [], []
    with torch.no_grad():
        for x, y in torch.utils.data.DataLoader(data, batch_size=32):
            for view in (x, x.flip(3)):
                features.append(cam_model.features(view).mean((2, 3)))
                labels.append(y)
    x, y = torch.cat(features), torch.cat(labels)
    linear = nn.Linear(x.shape[1], len(data.classes))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(arguments.epochs):
        loss = nn.functional.binary_cross_entropy_with_logits(linear(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    name = [name for name, module in loaded.model.named_modules() if isinstance(module, nn.Linear)][-1]
    state = loaded.model.state_dict()
    state[f"{name}.weight"] = linear.weight.detach()
    state[f"{name}.bias"] = linear.bias.detach()
    save_file({key: value.contiguous() for key, value in state.items()}, arguments.out)
    right = (((linear(x) > 0) == (y > 0)).float().mean() * 100).item()
    print(f"{len(x) // 2} images, {len(data.classes)} classes, loss {loss.item():.3f}, {right:.1f} % of labels right")


if __name__ == "__main__":
    main()
