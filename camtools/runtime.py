"""Maps, masks and boxes from a file that `camtools.to_onnx` wrote: numpy, PIL and onnxruntime, and no torch.

explainer = OnnxExplainer("model.onnx")
exp = explainer("photo.jpg")
exp.name, exp.score, exp.box, exp.mask, exp.map
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from camtools.errors import InputError, ModelError, TargetError
from camtools.parts import connected, mask_parts
from camtools.sizes import centre_offset, resized_size

METADATA = "camtools"
"""The key of the file's metadata."""
_SPECK = 0.01  # `camtools.boxes.SPECK`, which needs torch
_RESAMPLING = {name.lower(): value for name, value in Image.Resampling.__members__.items()}
_RESAMPLING["nearest-exact"] = Image.Resampling.NEAREST
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OnnxExplanation:
    """Where the classifier sees one class in one image; attributes are those of `camtools.Explanation`, as arrays.

    Attributes:
        label: Class index.
        name: Class name; the index as text where the file has no names.
        score: The model's probability for the class, in [0, 1]; its output itself with activation "none".
        raw_map: The class map as the graph gives it, (h, w) float32.
        map: On the image's pixels, (H, W) float32 in [0, 1].
        threshold: The value of `map` above which the mask is.
        logits: All class scores of the model, (K,).
        size: (H, W) of the image in pixels.
        source: The image's path; None where it did not come from a file.
        image: The image, RGB; None for an array that was ready for the model.
    """

    label: int
    name: str
    score: float
    raw_map: Array
    map: Array
    threshold: float
    logits: Array
    size: tuple[int, int]
    source: str | None
    image: Image.Image | None

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Where the map is above the threshold, (H, W)."""
        return self.map > np.float32(self.threshold)

    @cached_property
    def _parts(self) -> tuple[NDArray[np.int64], Array]:
        _, _, boxes, peaks, *_ = mask_parts(self.mask, _SPECK, connected, self.map)
        return boxes, peaks

    @property
    def boxes(self) -> NDArray[np.int64]:
        """One box per connected part of the mask, the largest first, (N, 4): x0, y0, x1, y1 in pixels, half-open."""
        return self._parts[0]

    @property
    def box_scores(self) -> Array:
        """How sure each box is, (N,): `score` times the map's maximum in the box's part."""
        return np.float32(self.score) * self._parts[1]

    @property
    def box(self) -> NDArray[np.int64] | None:
        """The box of the mask's largest part, (4,); None where the mask is empty."""
        return self.boxes[0] if len(self.boxes) else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays of pixels, ready for JSON."""
        return {
            "source": self.source,
            "height": self.size[0],
            "width": self.size[1],
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "box": None if self.box is None else self.box.tolist(),
            "boxes": self.boxes.tolist(),
            "box_scores": self.box_scores.tolist(),
            "threshold": self.threshold,
        }

    def __repr__(self) -> str:
        box = "none" if self.box is None else str(tuple(self.box.tolist()))
        return (
            f"OnnxExplanation({self.label} {self.name!r}, score={self.score:.3f}, box={box} of {len(self.boxes)}, "
            f"map={self.size[0]} x {self.size[1]} from {self.raw_map.shape[0]} x {self.raw_map.shape[1]})"
        )


class OnnxExplainer:
    """Explains images with a file that `camtools.to_onnx` wrote; what it gives is what `camtools.explain` gave.

    Args:
        path: The file.
        providers: onnxruntime's, such as ["CUDAExecutionProvider"]; None takes the CPU.
        session_options: An `onnxruntime.SessionOptions`, for threads and the like.

    Raises:
        ModelError: onnxruntime is missing, or the file is none of ours.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, providers: Sequence[Any] | None = None, session_options: Any = None
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelError("OnnxExplainer needs onnxruntime: pip install onnxruntime") from error
        place = Path(path)
        try:
            self.session = onnxruntime.InferenceSession(
                str(place), session_options, providers=list(providers or ["CPUExecutionProvider"])
            )
            told = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])
        except KeyError as error:
            raise ModelError(f"{place} has no metadata of camtools: expected a file of camtools.to_onnx") from error
        except Exception as error:  # onnxruntime has many
            raise ModelError(f"{place} cannot be opened ({type(error).__name__}: {error})") from error
        self.metadata: dict[str, Any] = told
        self.class_names: list[str] | None = told["class_names"]

    def __call__(
        self, images: Any, target: int | str | Sequence[int | str] | None = None, top_k: int | None = None
    ) -> Any:
        """Explain one image or a list of images in one run.

        Args:
            images: A path, a PIL image, an array (H, W, 3) or (H, W) of uint8, or a floating array (C, h, w) that is
                ready for the model; or a list of these. A floating (B, C, h, w) is a list.
            target: A class or a list of classes, the same for all images; None takes the likeliest.
            top_k: This many likeliest classes instead.

        Returns:
            One `OnnxExplanation`; a list for a list of classes or for `top_k`; a list of these for a list of images.

        Raises:
            InputError: An image cannot be used.
            TargetError: A class does not exist, or its map is not in the graph.
        """
        single = not isinstance(images, list | tuple) and getattr(images, "ndim", 3) < 4
        ready = [_ready(image, self.metadata) for image in ([images] if single else images)]
        if not ready:
            raise InputError("got no images: expected at least one")
        sizes = {one.values.shape for one in ready}
        batches = [[one] for one in ready] if len(sizes) > 1 else [ready]
        ran = [self._run(batch) for batch in batches]
        logits, likeliest, maps = ([row for outputs in ran for row in outputs[place]] for place in range(3))
        several = top_k is not None or (isinstance(target, Sequence) and not isinstance(target, str))
        results = []
        for row, image in enumerate(ready):
            wanted = self._wanted(logits[row], target, top_k)
            scores = _scores(logits[row], self.metadata["activation"])
            places = [self._place(label, likeliest[row]) for label in wanted]
            made = [
                self._explained(label, float(scores[label]), maps[row][place], logits[row], image)
                for label, place in zip(wanted, places, strict=True)
            ]
            results.append(made if several else made[0])
        return results[0] if single else results

    def _run(self, images: list[_Ready]) -> Any:
        """Return the logits, likeliest classes and maps of images of one size."""
        batch = np.stack([one.values for one in images])
        return self.session.run(["logits", "classes", "maps"], {"images": batch})

    def _wanted(self, logits: Array, target: Any, top_k: int | None) -> list[int]:
        if target is None:
            count = 1 if top_k is None else top_k
            if not 1 <= count <= len(logits):
                raise TargetError(f"top_k={top_k!r}: expected a whole number from 1 to {len(logits)}")
            return [int(label) for label in np.argsort(-logits, kind="stable")[:count]]
        if top_k is not None:
            raise TargetError(f"both target={target!r} and top_k={top_k} were given; give one")
        listed = list(target) if isinstance(target, Sequence) and not isinstance(target, str) else [target]
        return [self._label(one, len(logits)) for one in listed]

    def _label(self, target: Any, count: int) -> int:
        if isinstance(target, str):
            if self.class_names is None or target not in self.class_names:
                raise TargetError(f"there is no class named {target!r} in this file: expected one of its class_names")
            return self.class_names.index(target)
        if not isinstance(target, int | np.integer) or isinstance(target, bool) or not 0 <= target < count:
            raise TargetError(f"target={target!r}: expected a class from 0 to {count - 1}, or a name")
        return int(target)

    def _place(self, label: int, likeliest: NDArray[np.int64]) -> int:
        """Return where a class's map is among those of the graph."""
        if self.metadata["classes"] == "all":
            return label
        found = np.flatnonzero(likeliest == label)
        if not len(found):
            raise TargetError(
                f"the graph makes the maps of the {len(likeliest)} likeliest classes, {likeliest.tolist()} here, and "
                f"{label} is none of them. Write it by to_onnx(..., top_k=None), which has the maps of all classes"
            )
        return int(found[0])

    def _explained(self, label: int, score: float, grid: Array, logits: Array, image: _Ready) -> OnnxExplanation:
        full = _normalised(image.resize(grid))
        rule = self.metadata["threshold"]
        low = 0.0 if rule["low"] is None else np.percentile(full, rule["low"])
        high = full.max() if rule["high"] is None else np.percentile(full, rule["high"])
        name = str(label) if self.class_names is None else self.class_names[label]
        threshold = float(low + rule["theta"] * (high - low))
        return OnnxExplanation(label, name, score, grid, full, threshold, logits, image.size, image.source, image.image)


@dataclass(frozen=True)
class _Ready:
    """An image as the graph takes it, and where its input lies in it; pairs are (vertical, horizontal)."""

    values: Array
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]
    source: str | None
    image: Image.Image | None

    def resize(self, grid: Array) -> Array:
        """Take a map (h, w) to the image's pixels, as `camtools.images.Geometry.resize` does."""
        sides = zip(self.size, self.values.shape[1:], self.scale, self.offset, grid.shape, strict=True)
        (rows, unseen_rows), (columns, unseen_columns) = (_axis(*side) for side in sides)
        resized = np.asarray(rows @ grid @ columns.T, np.float32)
        if unseen_rows.any() or unseen_columns.any():
            low = grid.min()
            np.maximum(resized, low, out=resized)
            resized[unseen_rows] = low
            resized[:, unseen_columns] = low
        return resized


@lru_cache(maxsize=64)
def _axis(side: int, input_side: int, scale: float, offset: float, cells: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return bilinear weights along one axis, (side, cells), and which pixels the network does not see, (side,)."""
    along = (np.arange(side) + 0.5) * scale + offset
    position = np.clip(along * (cells / input_side) - 0.5, 0, cells - 1)
    first = np.floor(position).astype(np.int64)
    share = position - first
    weights = np.zeros((side, cells))
    np.add.at(weights, (np.arange(side), first), 1 - share)
    np.add.at(weights, (np.arange(side), np.minimum(first + 1, cells - 1)), share)
    return weights.astype(np.float32), (along < 0) | (along > input_side)


def _normalised(maps: Array) -> Array:
    """Return a map between 0 and 1, as `camtools.steps.MinMax` does; zeros where there is no contrast."""
    low, high = maps.min(), maps.max()
    if not np.isfinite(high - low) or high <= low:
        return np.zeros_like(maps)
    return np.asarray((maps - low) / (high - low), np.float32)


def _scores(logits: Array, activation: str) -> Array:
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers: Array = np.exp(logits - logits.max())
    return powers / powers.sum()


def _ready(image: Any, metadata: dict[str, Any]) -> _Ready:
    """Read one image and make it ready, as `camtools.Preprocess` does."""
    expected = tuple(metadata["input_size"])
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        any_size = metadata.get("dynamic_size") and image.ndim == 3 and image.shape[0] == expected[0]
        if image.shape != expected and not any_size:
            raise InputError(f"a ready array has shape {image.shape}: expected {expected}, as the graph takes")
        return _Ready(np.ascontiguousarray(image, np.float32), image.shape[1:], (1.0, 1.0), (0.0, 0.0), None, None)
    told = metadata["preprocess"]
    if told is None:
        raise InputError(f"the file does not say how images are made ready: expected a ready array {expected}")
    shown, source = _opened(image)
    size = (shown.height, shown.width)
    resized = resized_size(size, _pair(told["resize"]), told["crop_mode"])
    pixels = shown.convert("L") if told["channels"] == 1 else shown
    if told["channels"] not in (1, 3):
        raise InputError(f"the model takes {told['channels']} channels: expected a ready array {expected}")
    if resized != size:
        pixels = pixels.resize(resized[::-1], _RESAMPLING[told["interpolation"]])
    wanted = tuple(told["input_size"] or (resized if metadata.get("dynamic_size") else expected[1:]))
    offset = tuple(centre_offset(side, crop) for side, crop in zip(resized, wanted, strict=True))
    if wanted != resized:
        levels = tuple(round(255 * mean) if told["crop_mode"] == "border" else 0 for mean in told["mean"])
        canvas = Image.new(pixels.mode, wanted[::-1], levels[0] if told["channels"] == 1 else levels)
        canvas.paste(pixels, (offset[1], offset[0]))
        pixels = canvas
    values = np.asarray(pixels, np.float32).reshape(*wanted, told["channels"]).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(told[name], np.float32)[:, None, None] for name in ("mean", "std"))
    scale = (resized[0] / size[0], resized[1] / size[1])
    place = (float(offset[0]), float(offset[1]))
    return _Ready(np.ascontiguousarray((values - mean) / std), size, scale, place, source, shown)


def _opened(image: Any) -> tuple[Image.Image, str | None]:
    """Return an image as RGB, upright, and its path."""
    source = None
    if isinstance(image, str | os.PathLike):
        source = os.fspath(image)
        try:
            with Image.open(source) as opened:
                opened.load()
                image = opened
        except (OSError, ValueError) as error:
            raise InputError(f"{source!r} cannot be read ({error}): expected an image file") from error
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        got = f"array of {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"got {got}: expected a path, a PIL image, a uint8 array (H, W, 3) or a ready floating array")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    return image.convert("RGB"), source


def _pair(resize: Any) -> Any:
    return tuple(resize) if isinstance(resize, list) else resize
