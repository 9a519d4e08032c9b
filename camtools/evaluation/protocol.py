"""How images become inputs and maps become score maps: the WSOL protocol, or the model's own preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from camtools.boxes import PartBoxes
from camtools.checks import one_of
from camtools.errors import InputError
from camtools.images.geometry import Geometry
from camtools.images.preprocess import Preprocess, Transform, as_transform
from camtools.metrics.scoremap import PROTOCOL_SIZE, normalise, resize_cubic
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import on_pixels
from camtools.steps.base import Stage, State
from camtools.steps.minmax import MinMax
from camtools.steps.peaks import part_boxes

ProtocolName = Literal["wsol", "native"]


@dataclass(frozen=True)
class Projected:
    """What a pipeline made of a few images of one geometry; b of them with K' classes.

    Attributes:
        scores: Normalised score maps at the protocol's size, (b, K', 224, 224) float64 in [0, 1].
        masks: The pipeline's own, (b, K', H, W) bool: at the protocol's size, or at the image's.
        thresholds: Its own thresholds, fractions of the maps' maxima, (b, K') float32; NaN for maps of zeros.
        parts: The boxes of every mask's parts, in its pixels, b lists of K'.
    """

    scores: Tensor
    masks: Tensor
    thresholds: Tensor
    parts: list[list[PartBoxes]]


@dataclass(frozen=True)
class Protocol:
    """A protocol with the transform that goes with it.

    Attributes:
        name: "wsol": images are squashed to 224 x 224 (PIL, bilinear), normalised with the model's mean and std; maps
            are resized bicubically to 224 x 224 (Choe et al., CVPR 2020, and the released code, wsolevaluation).
            "native": the model's own preprocessing; maps are taken back to the image's pixels as `camtools.explain`
            does, and from there bicubically to the size at which metrics compare them with the truth.
        transform: From an image to the model's input.
    """

    name: ProtocolName
    transform: Transform

    @classmethod
    def of(cls, name: str, transform: Any) -> Protocol:
        """Choose a protocol for a model.

        Args:
            name: "wsol" or "native".
            transform: The model's own, anything `as_transform` takes; None for the usual one of ImageNet.

        Raises:
            InputError: The name is unknown, or mean and std of the transform are, which "wsol" needs.
        """
        one_of("protocol", name, get_args(ProtocolName))
        own = Preprocess.imagenet() if transform is None else as_transform(transform)
        if name == "native":
            return cls("native", own)
        if not isinstance(own, Preprocess):
            raise InputError(
                f"protocol='wsol' squashes images itself and needs the model's mean and std, which {own!r} does not "
                "tell: pass transform=Preprocess.imagenet(mean=..., std=...), or protocol='native'"
            )
        squash = replace(
            own, input_size=PROTOCOL_SIZE, resize=PROTOCOL_SIZE, crop_mode="squash", interpolation="bilinear"
        )
        return cls("wsol", squash)

    def project(
        self, pipeline: Pipeline, state: State, rows: Sequence[int], geometry: Geometry, images: list[Image.Image]
    ) -> Projected:
        """Run a pipeline's steps on the pixels of some of a batch's images.

        Args:
            pipeline: The pipeline.
            state: Of the whole batch, from `Engine.maps`.
            rows: Which images of the batch.
            geometry: That of all of them; "wsol" does not look at it.
            images: These images; only looked at where the pipeline needs them.
        """
        resize = _Cubic() if self.name == "wsol" else geometry.resize
        shown = [image.resize(PROTOCOL_SIZE[::-1]) for image in images] if self.name == "wsol" else images
        done = on_pixels(pipeline, state, rows, resize, shown if pipeline.needs_image else None)
        maps, masks, limits = (done.require(name, pipeline) for name in ("maps", "masks", "thresholds"))
        if isinstance(resize, _Cubic) and resize.exact is not None and _only_minmax(pipeline):
            scores = normalise(resize.exact, None)  # in double precision, as the reference: levels are exactly its own
        else:
            scores = normalise(maps.flatten(0, 1), PROTOCOL_SIZE)
        high = maps.amax((-2, -1))
        fractions = torch.where(high > 0, limits / high, torch.nan)
        found = part_boxes(done, pipeline.peaks)
        count = maps.shape[1]
        parts = [found[start : start + count] for start in range(0, len(found), count)]
        return Projected(scores.unflatten(0, maps.shape[:2]), masks, fractions, parts)


class _Cubic:
    """Resizes maps to the protocol's size and keeps the result in double precision, (b K', 224, 224)."""

    exact: Tensor | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        self.exact = resize_cubic(maps.detach().double().flatten(0, 1), PROTOCOL_SIZE)
        return self.exact.float().unflatten(0, maps.shape[:2])


def _only_minmax(pipeline: Pipeline) -> bool:
    """Whether the maps' values after the resize are only min-max normalised, as the protocol does itself."""
    return all(type(step) is MinMax for step in pipeline if step.stage == Stage.REFINE and step.resolution == "image")
