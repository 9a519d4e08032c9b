"""The box regressor: one class-agnostic box per image, by a network of its own beside the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camtools.checks import one_of, whole
from camtools.errors import InputError, WeightsError
from camtools.heads.headed import HeadedModel
from camtools.heads.layers import HiddenLayer
from camtools.heads.pooling import GAP
from camtools.heads.replace import replace_head
from camtools.heads.saved import load_headed
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.images.read import InputImage, read_images
from camtools.model.device import to_model
from camtools.model.guard import untouched

_BATCH = 32
BOX_FORMS = {"corners": "box", "xywh": "box xywh"}  # as a saved file says them


class BoxRegressor(nn.Module):
    """A classifier's body, average pooling and four sigmoid outputs: where the object is, whatever its class.

    `Explainer(classifier, boxes_from=regressor)` takes the class from one network and the box from the other. It sees
    the whole image, squashed to its input size; an image has one box.

    Source: CREAM, section 4.1, after PSOL (Zhang et al., CVPR 2020); trained by the recipe `cream_regressor`.

    Args:
        network: Four outputs, logits of x0, y0, x1, y1 as shares of the input's sides; or of x0, y0, width and height,
            where its `outputs` are "box xywh". `BoxRegressor.of` makes one.

    Raises:
        InputError: It has another number of outputs.
    """

    def __init__(self, network: HeadedModel) -> None:
        super().__init__()
        linear: Any = network.head.last if isinstance(network.head, HiddenLayer) else network.classifier
        outputs = None if linear is None else linear.out_features
        if outputs != 4:
            raise InputError(f"the network has {outputs} outputs: expected 4. Make one by BoxRegressor.of(classifier)")
        self.network = network
        if network.outputs not in BOX_FORMS.values():
            network.outputs = BOX_FORMS["corners"]
        self.preprocess = network.preprocess

    @classmethod
    def of(
        cls, model: nn.Module, *, hidden: int = 0, form: Literal["corners", "xywh"] = "corners", **place: Any
    ) -> BoxRegressor:
        """Make one with a copy of a classifier's body, its last layer fresh.

        Args:
            model: Any classifier that `replace_head` takes; left as it was.
            hidden: Width of a hidden layer before the four outputs (512 in PSOL's code); 0 for none.
            form: What the outputs are: corners, or "xywh", one corner and the sides, as in PSOL's code.
            **place: `output_stride`, `dilate`, `cut_after` and `conv` of `replace_head`.

        Raises:
            ModelError: The classifier has no body to take.
            InputError: `hidden` or `form` is none of these.
        """
        one_of("form", form, tuple(BOX_FORMS))
        width = whole("hidden", hidden, least=0)
        head = partial(HiddenLayer, width=width) if width else GAP()
        network = replace_head(model, head, classes=4, keep_classifier=False, **place)
        network.class_names, network.outputs = None, BOX_FORMS[form]
        return cls(network)

    @property
    def preprocess(self) -> Transform | None:
        """From an image to the input: the body's own, with the whole image squashed instead of cropped."""
        return self.network.preprocess

    @preprocess.setter
    def preprocess(self, transform: Transform | None) -> None:
        if isinstance(transform, Preprocess) and transform.input_size is not None:
            transform = replace(transform, resize=transform.input_size, crop_mode="squash")
        self.network.preprocess = transform

    def forward(self, x: Tensor) -> Tensor:
        """Return x0, y0, x1, y1 as shares of the input's sides, (B, 4), of inputs (B, 3, H, W).

        Corners are as they come, with "xywh" up to 2: `boxes` puts them in order, and within the image.
        """
        shares: Tensor = self.network(x).sigmoid()
        if self.network.outputs == BOX_FORMS["xywh"]:
            shares = torch.cat([shares[:, :2], shares[:, :2] + shares[:, 2:]], 1)
        return shares

    def boxes(self, images: Any, batch_size: int = _BATCH) -> Tensor:
        """Return the box of one image or of many; the model is left as it was.

        Args:
            images: As `camtools.explain` takes them.
            batch_size: Images per forward.

        Returns:
            x0, y0, x1, y1 in pixels of the image, float32 on the CPU: (N, 4), or (4,) for a single image.

        Raises:
            InputError: An image cannot be used.
        """
        input_images, single = read_images(images)
        starts = range(0, len(input_images), batch_size)
        boxes = torch.cat([self.boxes_of(list(input_images[start : start + batch_size])) for start in starts])
        return boxes[0] if single else boxes

    def boxes_of(self, images: Sequence[InputImage]) -> Tensor:
        """Return the boxes of images that were read, (N, 4) float32 on the CPU; see `boxes`."""
        transform = Preprocess.imagenet() if self.preprocess is None else as_transform(self.preprocess)
        prepared = [transform(image) for image in images]
        boxes = torch.zeros(len(images), 4)
        for shape in dict.fromkeys(tensor.shape for tensor, _ in prepared):
            members = [i for i, (tensor, _) in enumerate(prepared) if tensor.shape == shape]
            x = to_model(torch.stack([prepared[i][0] for i in members]), self)
            with torch.inference_mode(False), torch.no_grad(), untouched(self):
                shares = self(x).float().cpu().clamp_max(1)
            low, high = shares[:, :2].minimum(shares[:, 2:]), shares[:, :2].maximum(shares[:, 2:])
            sides = torch.tensor([shape[-1], shape[-2]] * 2)
            corners = torch.cat([low, high], dim=1) * sides
            for row, i in enumerate(members):
                boxes[i] = prepared[i][1].boxes_to_original(corners[row][None])[0]
        return boxes

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one safetensors file; see `HeadedModel.save`."""
        self.network.save(path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> BoxRegressor:
        """Read what `save` wrote; in eval mode.

        Args:
            path: The file.
            model: The classifier whose body it has, with any weights, where the file does not name one.

        Raises:
            WeightsError: The file is missing, damaged, or another model's.
            ModelError: The classifier is needed and was not given.
        """
        network = load_headed(path, model)
        if network.outputs not in BOX_FORMS.values():
            raise WeightsError(f"{path} holds a classifier: expected a box regressor, as BoxRegressor.save writes it")
        return cls(network).eval()


def whole_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Round boxes to whole pixels, at least one wide and high, within the image.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in pixels.
        size: (H, W) of the image.

    Returns:
        (N, 4) int64, half-open.
    """
    edge = torch.tensor([size[1], size[0]])
    rounded = boxes.round().to(torch.int64)
    low = rounded[:, :2].clamp(min=0).minimum(edge - 1)
    high = rounded[:, 2:].minimum(edge).maximum(low + 1)
    return torch.cat([low, high], dim=1)
