"""The result: one class in one image, as map, mask and boxes."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from camtools.boxes import coco_annotations
from camtools.checks import as_path, one_of
from camtools.drawing.overlay import draw_overlay
from camtools.drawing.trace import draw_trace
from camtools.errors import InputError, PipelineError
from camtools.files import parse_json, read_text
from camtools.images.geometry import Geometry
from camtools.images.read import InputImage
from camtools.model.outputs import Activation
from camtools.parts import mask_of_runs
from camtools.pipeline.pixels import map_on_pixels, plain
from camtools.pipeline.text import parse_step
from camtools.pipeline.trace import TraceStep
from camtools.regions import HasBoxes
from camtools.result import MANIFEST, ImageResult, Look, fitted
from camtools.steps.base import State, Step
from camtools.steps.peaks import Peaks, part_boxes

Boxes = Literal["largest", "all", "none"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(HasBoxes, ImageResult):
    """Where one class is in one image. Tensors are on the model's device, boxes on the CPU.

    What is kept is the map on the feature grid, a few kilobytes; `map` and `mask` are made of it when they are asked
    for, bit for bit what the boxes were drawn around.

    Attributes:
        label: Class index.
        name: Class name; the index as text where no names are known.
        score: The model's probability for the class, in [0, 1]; its output itself with `activation="none"`.
        grid_map: What `map` is made of: the pipeline's map before it was taken to the image's pixels, (h, w) float32,
            on the feature grid or on that of an earlier stage.
        raw_map: The class map before normalisation, signed, at feature resolution, (h, w) float32.
        threshold: What `map` is compared with.
        boxes: One box per connected part of the mask, the part with the most pixels first, (N, 4) int64: x0, y0, x1,
            y1 in pixels of the original image, half-open. Parts with less than a hundredth of the largest's pixels
            get none. (0, 4) where the mask is empty. One, whatever the mask, where a `BoxRegressor` gave it.
        box_scores: How sure each box is, (N,) float32 in [0, 1]: `score` times the map's maximum in the box's part, 1
            where the map has its peak. `score` itself where a `BoxRegressor` gave the box.
        geometry: Where the network's input lies in the image.
        pixel_steps: The pipeline's steps that make `map` of the resized `grid_map`.
        kept: `map` itself, where these steps look at the image and take long, or there is a trace; else None.
        peaks: The step that split the mask into parts; None where these are its connected parts.
        trace: The map after every step, in order; empty unless asked for by `trace=True`.
        activation: What made the score of the logit: "softmax", "sigmoid" or "none".
        exact, layer, logits, input_image, transform, pipeline: See `camtools.result.ImageResult`.
    """

    label: int
    name: str
    score: float
    grid_map: Tensor
    raw_map: Tensor
    threshold: float
    boxes: Tensor
    box_scores: Tensor
    geometry: Geometry
    pixel_steps: tuple[Step, ...] = ()
    kept: Tensor | None = None
    peaks: Peaks | None = None
    trace: tuple[TraceStep, ...] = ()
    activation: Activation = "softmax"

    _runs: ClassVar[Tensor | None] = None  # of the mask's pixels, where they have been found; see `PartBoxes`

    kinds = ("overlay", "mask", "map", "crops")
    usual = ("overlay", "mask", "map")

    @property
    def map(self) -> Tensor:
        """The normalised map at the original image's resolution, (H, W) float32 in [0, 1]; made when asked for."""
        return _rebuilt(self) if self.kept is None else self.kept

    @property
    def mask(self) -> Tensor:
        """`map > threshold`, (H, W) bool; made when asked for."""
        with plain(self.grid_map.device):
            if self._runs is None:
                return self.map > self.threshold
            return torch.from_numpy(mask_of_runs(self._runs.numpy(), self.size)).to(self.grid_map.device)

    @property
    def box(self) -> Tensor | None:
        """The box of the mask's largest part, (4,) int64 xyxy half-open; None where the mask is empty."""
        return self.boxes[0] if len(self.boxes) else None

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """The part of the image that the model saw: x0, y0, x1, y1 in pixels, half-open."""
        return self.geometry.seen

    @property
    def cut(self) -> tuple[bool, ...]:
        """For each box whether it ends where the model's view of the image does, so that the object may go on."""
        x0, y0, x1, y1 = self.seen
        height, width = self.size
        return tuple(
            (0 < x0 >= box[0]) or (0 < y0 >= box[1]) or (width > x1 <= box[2]) or (height > y1 <= box[3])
            for box in self.boxes.tolist()
        )

    @property
    def parts(self) -> Tensor:
        """The mask's parts, (H, W): `mask` itself, or int32, the number of each pixel's peak and 0 outside the mask."""
        state = State(maps=self.map[None, None], masks=self.mask[None, None])
        return self.mask if self.peaks is None else self.peaks(state).require("parts", self)[0, 0]

    def cpu(self) -> Explanation:
        """Return the same explanation with every tensor on the CPU."""
        return replace(super().cpu(), trace=tuple(step.cpu() for step in self.trace))

    def overlay(
        self,
        alpha: float = 0.5,
        colormap: str = "inferno",
        boxes: Boxes = "largest",
        legend: bool = True,
        size: int | None = None,
    ) -> Image.Image:
        """Draw map, box, class and score over the image, with a legend; boxes after the first with their own scores.

        Args:
            alpha: Weight of the map's colours, in [0, 1].
            colormap: Name of a matplotlib colour map.
            boxes: Which boxes to draw.
            legend: Whether to explain the colours, the threshold and the box, on white below the image (beside it
                where it is narrow). A name that is too long for the image is there in full.
            size: The longest that the image's sides may be, in pixels; larger images are shrunk. None: the original's.

        Returns:
            RGB image. Without a legend it has the original's size, or what `size` makes of it; with one it is larger,
            and has the image at its top left.

        Raises:
            InputError: `alpha` or `size` is out of range, or the colour map is unknown.
        """
        drawn, chosen = fitted(self.size, size), self.choose(boxes)
        ratio = torch.tensor([drawn[1] / self.size[1], drawn[0] / self.size[0]]).repeat(2)
        scaled = (chosen * ratio).round().int().tolist()
        cut = boxes != "none" and any(self.cut[: len(scaled)])
        say: dict[str, Any] = {"threshold": self.threshold, "key": _key(boxes, len(scaled), cut)} if legend else {}
        if not self.geometry.covers_all:
            say["seen"] = self.geometry.at(drawn).seen
        say["notes"] = [f"{score:.1%}" for score in self.box_scores[1 : len(scaled)].tolist()]
        image = self.image if self.input_image.is_data else self.input_image.shown(drawn)
        image = image if image.size == drawn[::-1] else image.resize(drawn[::-1], Image.Resampling.BILINEAR)
        return draw_overlay(image, self.map_at(drawn).cpu().numpy(), scaled, self.caption, alpha, colormap, **say)

    def map_at(self, size: tuple[int, int]) -> Tensor:
        """Return the map as it is on another rendering of the image, (height, width) float32 in [0, 1].

        Args:
            size: (height, width) in pixels.
        """
        if size == self.size:
            return self.map
        if self.kept is not None:
            return interpolate(self.kept[None, None], size=size, mode="area")[0, 0]
        return map_on_pixels(self.pixel_steps, self.grid_map, self.label, self.geometry.at(size).resize)

    def plot_trace(self, *, height: int = 140, columns: int | None = None, colormap: str = "inferno") -> Image.Image:
        """Draw the map after every step of the pipeline, and how each step changed it.

        Signed maps have a diverging colour map with 0 in its middle, normalised ones `colormap`; their ranges are
        written below. Under each is the difference from the step before, after both were brought to [0, 1].

        Args:
            height: Of a thumbnail, in pixels.
            columns: Thumbnails per row; as many as fit in about 1,600 pixels by default.
            colormap: Name of a matplotlib colour map, for normalised maps.

        Returns:
            RGB image.

        Raises:
            InputError: The explanation has no trace, or an argument cannot be used.
        """
        boxes = self.boxes.tolist()
        return draw_trace(self.image, self.trace, boxes, self.name, self.score, height, columns, colormap)

    @property
    def caption(self) -> str:
        """Name and score, as they are written on images."""
        score = f"{self.score:.4g}" if self.activation == "none" else f"{self.score:.1%}"
        return f"{self.name} {score}"

    def choose(self, boxes: Boxes) -> Tensor:
        """Return the boxes to draw, (n, 4).

        Raises:
            InputError: `boxes` is none of the three words.
        """
        chosen = {"largest": self.boxes[:1], "all": self.boxes, "none": self.boxes[:0]}
        return chosen[one_of("boxes", boxes, tuple(chosen))]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""
        return {
            "source": self.source,
            "height": self.size[0],
            "width": self.size[1],
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "box": None if self.box is None else self.box.tolist(),
            "boxes": self.boxes.tolist(),
            "cut": list(self.cut),
            "seen": list(self.seen),
            "box_scores": self.box_scores.tolist(),
            "threshold": self.threshold,
            "exact": self.exact,
            "layer": self.layer,
            "pipeline": self.pipeline,
            "map_size": list(self.raw_map.shape),
        }

    def to_coco(
        self, image_id: int = 1, *, first_annotation_id: int = 1, category_id: int | None = None
    ) -> dict[str, Any]:
        """Return a COCO data set of this one image: what annotation tools import.

        Args:
            image_id: Number of the image.
            first_annotation_id: Number of the first annotation; every part of the mask is one.
            category_id: Number of the class; `label + 1` by default, since 0 is reserved for background in many tools.

        Returns:
            "images", "annotations" (bbox as x, y, width, height; segmentation as uncompressed run lengths; score, that
            of the part's box) and "categories".
        """
        category = self.label + 1 if category_id is None else category_id
        name = Path(self.source).name if self.source else f"{image_id}"
        image = {"id": image_id, "file_name": name, "height": self.size[0], "width": self.size[1]}
        parts = self.parts
        [found] = part_boxes(State(maps=self.map, masks=self.mask, parts=parts), self.peaks)
        scores = (self.score * found.peaks).tolist()
        pairs = zip(scores, coco_annotations(parts, found), strict=True)
        annotations = [
            {"id": number, "image_id": image_id, "category_id": category, "score": score, **annotation}
            for number, (score, annotation) in enumerate(pairs, first_annotation_id)
        ]
        return {"images": [image], "annotations": annotations, "categories": [{"id": category, "name": self.name}]}

    def _write(self, stage: Path, kinds: Collection[str], look: Look) -> dict[str, str | list[str]]:
        written: dict[str, str | list[str]] = {}
        if "overlay" in kinds:
            written["overlay"] = look.write(self.overlay(size=look.size), stage / "overlay")
        if "mask" in kinds:
            Image.fromarray(self.mask.cpu().numpy()).save(stage / "mask.png", compress_level=1)
            written["mask"] = "mask.png"
        if "map" in kinds:
            arrays = {"map": self.grid_map, "raw_map": self.raw_map, "logits": self.logits}
            arrays |= {} if self.kept is None else {"kept": self.kept}
            np.savez(stage / "map.npz", **{name: array.cpu().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]  # no `allow_pickle` among the names
            written["map"] = "map.npz"
        if "crops" in kinds:
            numbers = range(len(self.boxes))
            written["crops"] = [look.write(self.crop(number), stage / f"crop-{number + 1}") for number in numbers]
        return written

    def _rebuild(self) -> dict[str, Any]:
        steps = [repr(step) for step in self.pixel_steps]
        return {"geometry": asdict(self.geometry), "pixel_steps": steps, "peaks": self.peaks and repr(self.peaks)}

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Explanation:
        """Read what `save` wrote, "map" included; `map`, `mask` and boxes are bit for bit the ones that were saved.

        Tensors are on the CPU. The image is read from its file when something is drawn on it; the transform and the
        trace are not kept.

        Args:
            directory: Where it was saved; with several classes, the sub-folder of one.

        Raises:
            InputError: There is no whole explanation, it was saved without its map, or a step of its pipeline is not
                one of camtools'.
        """
        folder = as_path("directory", directory)
        try:
            told = parse_json(read_text(folder / MANIFEST))
            with np.load(folder / told["files"]["map"]) as arrays:
                tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            geometry = Geometry(**{name: tuple(value) for name, value in told["rebuild"]["geometry"].items()})
            peaks = told["rebuild"]["peaks"] and parse_step(told["rebuild"]["peaks"])
            if not isinstance(peaks, Peaks | None):
                raise ValueError(f"{peaks!r} does not split masks")
            return cls(
                **{name: told[name] for name in ("label", "name", "score", "threshold", "exact", "layer", "pipeline")},
                grid_map=tensors["map"],
                raw_map=tensors["raw_map"],
                logits=tensors["logits"],
                kept=tensors.get("kept"),
                boxes=torch.tensor(told["boxes"], dtype=torch.int64).reshape(-1, 4),
                box_scores=torch.tensor(told["box_scores"], dtype=torch.float32),
                geometry=geometry,
                peaks=peaks,
                pixel_steps=tuple(map(parse_step, told["rebuild"]["pixel_steps"])),
                input_image=InputImage(None, None, told["source"], (told["height"], told["width"])),
                transform=None,
            )
        except PipelineError as error:
            raise InputError(f"{folder} cannot be loaded: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise InputError(
                f"{folder} holds no whole explanation with its map ({type(error).__name__}: {error}): expected what "
                "Explanation.save or 'camtools explain --save map' wrote, of one class. Name that folder"
            ) from error

    def __repr__(self) -> str:
        box = "none" if self.box is None else str(tuple(self.box.tolist()))
        kind = "exact" if self.exact else "linearised"
        return (
            f"Explanation({self.label} {self.name!r}, score={self.score:.3f}, box={box} of {len(self.boxes)}, "
            f"map={self.size[0]} x {self.size[1]} from {self.raw_map.shape[0]} x {self.raw_map.shape[1]}, {kind} at "
            f"{self.layer!r}{f', {self.source!r}' if self.source else ''})"
        )


@lru_cache(maxsize=2)
def _rebuilt(exp: Explanation) -> Tensor:
    """Make the map of its grid's; the last two are kept, for those who ask for the map and then for the mask."""
    return map_on_pixels(exp.pixel_steps, exp.grid_map, exp.label, exp.geometry.resize)


def _key(boxes: str, count: int, cut: bool) -> str | None:
    """Say what the boxes drawn are."""
    if boxes == "none":
        return None
    if not count:
        return "no box: nothing above the threshold"
    said = "box: largest part above it" if boxes == "largest" else "boxes: parts above it"
    return said + ", cut off where the model's view ends" * cut
