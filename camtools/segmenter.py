"""`segment` in one call, and `Segmenter`, its reusable form: images in, semantic masks out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camtools.checks import flag, number, one_of, share, whole
from camtools.classes.names import resolve_target
from camtools.classes.targets import Target, class_indices, is_list
from camtools.engine import Engine, Forward
from camtools.errors import InputError, TargetError
from camtools.images.adjusted import Crop, with_crop
from camtools.images.batches import READERS, Batch, Errors, images_of, on_error, read_batches
from camtools.images.preprocess import display_image
from camtools.images.read import read_images
from camtools.model.device import Precision
from camtools.model.outputs import Activation, Output
from camtools.notebook import ResultList
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.pixels import at_once, groups, on_pixels
from camtools.pipeline.text import one_pipeline
from camtools.progress import progress_bar
from camtools.segmentation import Segmentation
from camtools.steps import CRF
from camtools.steps.base import State, Step
from camtools.steps.dense_crf import lattice
from camtools.steps.dense_crf.mean_field import infer

BACKGROUND = 0.35
MIN_SCORE = {"softmax": 0.2, "sigmoid": 0.5}
EPS = 1e-6  # least probability of class or background in one map, where no CRF has a say in it

Classes = Target | Sequence[Target] | Sequence[Target | Sequence[Target] | None] | Tensor | None


def default_crf() -> CRF:
    """Return the CRF that `crf=True` stands for: kernels weak enough not to let objects vanish at `BACKGROUND`."""
    return CRF(gaussian=(3, 1), bilateral=(80, 5, 1))


class Segmenter:
    """Makes semantic masks of images with a classifier that knows no more than which classes are in an image.

    Every class that is looked for gets its map from one forward, normalised to [0, 1] by the pipeline. A class k and
    the background are equally likely where its map m_k is at the background score b, and the odds of k against the
    background are m_k / (1 - m_k) times (1 - b) / b. These odds of all classes together, 1 for the background, are
    normalised to probabilities, which a CRF over all of them may refine. The likeliest wins the pixel: without a CRF,
    the class with the highest map where that is above b.

    The model is run in eval mode and left exactly as it was.

    Source: Bae, Noh and Kim, slides of track 1 of the LID challenge 2020: maps per class, background score, CRF,
    argmax. The odds are those of `camtools.steps.CRF`, for several classes.

    Args:
        model: Any classifier, or a `CamModel`.
        pipeline: Preset name, steps as text ("NWC,IVR(45)"), `Pipeline`, step, or list of steps.
        background: The map value at even odds, above 0 and below 1. None takes for each map what the pipeline's
            threshold step compares it with, so that the mask of a single class is the one that `explain` gives.
        min_score: Score above which a class is looked for where the caller names none, in [0, 1); None is 0.2 for
            "softmax" and 0.5 for "sigmoid".
        crf: A CRF over all classes together: True for `default_crf()`, or a `camtools.steps.CRF` of your own, of which
            the kernels, iterations, backend, scale and eps count, and `background` gives way to the one above.
        activation: How logits become scores: "softmax", or "sigmoid" for multi-label models and single logits; None
            goes by the model's output.
        output: Which of the model's outputs holds the class scores; see `camtools.wrap`.
        forward_args: What forward takes after the images; see `camtools.wrap`.
        forward_kwargs: Likewise, by name.
        display: Which channels are drawn, one or three; None draws the first three.
        device: Where to run; see `Explainer`.
        batch_size: Images per forward.
        transform: The model's preprocessing; None asks the model. See `Explainer`.
        class_names: Names of the classes in order; None asks the model.
        crop: What the model is shown; see `Explainer`. None leaves that to the transform.
        precision: "float32", "bf16" or "auto"; see `Explainer`.
        progress: Whether a call shows a bar, on a terminal or in a notebook.

    Raises:
        ModelError: No module, or no adapter knows it.
        PipelineError: The pipeline is unknown or impossible.
        InputError: The transform or an argument cannot be used.
        TargetError: `class_names` is not a list of names.
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: str | Pipeline | Step | Sequence[Step] = "rcam",
        *,
        background: float | None = BACKGROUND,
        min_score: float | None = None,
        crf: CRF | bool | None = None,
        activation: Activation | None = None,
        output: Output = None,
        forward_args: Sequence[Any] = (),
        forward_kwargs: Mapping[str, Any] | None = None,
        display: int | Sequence[int] | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        crop: Crop | None = None,
        precision: Precision = "float32",
        progress: bool = False,
    ) -> None:
        self.progress = flag("progress", progress)
        if background is not None:
            number("background", background, "(0, 1)")
        if min_score is not None:
            share("min_score", min_score)
        if crf is not None and not isinstance(crf, bool | CRF):
            raise InputError(f"crf={crf!r}: expected True, False, or a camtools.steps.CRF with parameters of your own")
        if activation is not None:
            one_of("activation", activation, ("softmax", "sigmoid"))
        self.pipeline, self.pipeline_name = one_pipeline(pipeline)
        self.engine = Engine(
            model,
            [self.pipeline],
            device=device,
            transform=transform,
            class_names=class_names,
            activation=activation,
            output=output,
            forward_args=forward_args,
            forward_kwargs=forward_kwargs,
            display=display,
            batch_size=batch_size,
            precision=precision,
        )
        if crop is not None:
            self.engine.transform = with_crop(self.engine.transform, crop)
        self.background = background
        self._given_score = min_score
        self.crf = crf if isinstance(crf, CRF) else default_crf() if crf else None
        self.engine.whole_images |= self.crf is not None

    @property
    def min_score(self) -> float:
        """Score above which a class is looked for where the caller names none."""
        return MIN_SCORE[self.engine.activation or "softmax"] if self._given_score is None else self._given_score

    def __call__(self, images: Any, classes: Classes = None) -> Segmentation | list[Segmentation]:
        """Segment one image or many.

        Args:
            images: A path, PIL image, array or tensor, or a list or batch of them; see `camtools.explain`.
            classes: Which classes to look for, whatever their scores: one index or name, or a list of them, for every
                image. For many images also a list with a list for each, which may be empty, or None for those
                above `min_score`.

        Returns:
            One segmentation for a single image, else a list. An image in which no class is above `min_score` is all
            background.

        Raises:
            InputError: An image cannot be used.
            TargetError: A class does not exist or is named twice, or `classes` has the wrong length.
            ModelError: The model cannot be explained.
        """
        inputs, single = read_images(images)
        wanted = _per_image(classes, len(inputs), single)
        segmentations: list[Segmentation] = []
        with progress_bar(len(inputs), "Images", self.progress) as advance:
            for batch in self.engine.batches(images, wanted, single):
                segmentations += self.segment_batch(batch)
                advance(len(batch.images))
        return segmentations[0] if single else ResultList(segmentations)

    def stream(
        self,
        images: Any,
        classes: Target | Sequence[Target] | None = None,
        *,
        errors: Errors = "raise",
        progress: bool = False,
        workers: int = READERS,
    ) -> Iterator[Segmentation]:
        """Segment images one after another without keeping them: for more than fit in memory.

        Args:
            images: As `Explainer.stream` takes them: any iterable, a folder, a pattern, a list, shards, a store.
            classes: Which classes to look for in every image; None for those above `min_score`.
            errors: What becomes of images that cannot be read. "raise"; "skip": a warning, and the others go on; or a
                callable, which is given the image and the error in place of the warning.
            progress: Whether to show a progress bar, on a terminal and where the number of images is known.
            workers: Threads that read.

        Yields:
            What a call would give for each image, in order.

        Raises:
            InputError: An image cannot be used; those before it have been yielded by then. Or an argument cannot be.
            TargetError: A class does not exist or is named twice.
            ModelError: The model cannot be explained.
        """
        wanted = repeat(_per_image(classes, 1, True)[0])
        failed, items = on_error(errors), images_of(images)
        sized = items if isinstance(items, Sized) else images
        total = len(sized) if flag("progress", progress) and isinstance(sized, Sized) else 0
        engine, readers = self.engine, whole("workers", workers)
        batches = read_batches(
            enumerate(items), wanted, engine.transform, engine.batch_size, engine.least, readers, failed
        )
        with progress_bar(total, "Segmenting") as advance:
            for batch in batches:
                for segmentation in self.segment_batch(batch):
                    yield segmentation
                    advance(1)

    @torch.inference_mode(False)  # results are the caller's to train with
    @torch.no_grad()
    def segment_batch(self, batch: Batch) -> list[Segmentation]:
        """Segment one batch, each image with the classes in its target: one forward, then batched steps.

        Raises:
            InputError: The model does not take inputs of this shape.
            TargetError: A class does not exist or is named twice.
            ModelError: The model cannot be explained.
        """
        engine = self.engine
        forward = engine.run(batch)
        targets, counts = self._chosen(forward, [ready.target for ready in batch.images])
        [state] = engine.maps(forward, targets)
        scores = engine.scores(forward).gather(1, targets).tolist()
        decomposition = forward.activations.decomposition
        segmentations: dict[int, Segmentation] = {}
        geometries = [ready.geometry for ready in batch.images]
        for rows in groups(geometries, at_once(geometries, targets.shape[1])):
            most = max(1, *(counts[i] for i in rows))
            shares, maps, limits = self._on_pixels(batch, state.classes(slice(most)), rows, [counts[i] for i in rows])
            winners = shares.argmax(1)
            values = torch.cat([torch.zeros_like(targets[rows, :1]), targets[rows, :most] + 1], 1)
            masks = values.gather(1, winners.flatten(1)).view_as(winners)
            for row, i in enumerate(rows):
                n = counts[i]
                classes = tuple(targets[i, :n].tolist())
                own = tuple(limits[row, :n].tolist())
                segmentations[i] = Segmentation(
                    mask=masks[row].clone(),
                    classes=classes,
                    names=tuple(map(engine.name, classes)),
                    scores=tuple(scores[i][:n]),
                    probabilities=shares[row, : n + 1].clone(),
                    maps=maps[row, :n].clone(),
                    backgrounds=own if self.background is None else (self.background,) * n,
                    exact=decomposition.exact,
                    layer=decomposition.layer,
                    logits=forward.logits[i].detach().clone(),
                    input_image=batch.images[i].input_image,
                    transform=engine.transform,
                    pipeline=self.pipeline_name,
                    peaks=self.pipeline.peaks,
                    crf=None if self.crf is None else repr(self.crf),
                )
        return [segmentations[i] for i in range(len(batch.images))]

    def _on_pixels(
        self, batch: Batch, state: State, rows: list[int], counts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities (b, K' + 1, H, W), maps (b, K', H, W) and even odds (b, K') of one geometry."""
        images = None
        if self.crf is not None or self.pipeline.needs_image:
            images = [display_image(batch.images[i].input_image, self.engine.transform) for i in rows]
        done = on_pixels(self.pipeline, state, rows, batch.images[rows[0]].geometry.resize, images)
        maps, limits = done.require("maps", self), done.require("thresholds", self)
        if self.background is not None:
            limits = torch.full_like(limits, self.background)
        there = torch.arange(limits.shape[1])[None] < torch.tensor(counts)[:, None]
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
            return self._probabilities(maps, limits, there.to(maps.device), done.images), maps, limits

    def _probabilities(self, maps: Tensor, limits: Tensor, there: Tensor, images: Tensor | None) -> Tensor:
        """Return background and classes, (B, K' + 1, H, W); classes that are not there get (next to) nothing."""
        eps = EPS if self.crf is None else self.crf.eps
        odds = torch.logit(maps.float(), eps) - torch.logit(limits.float(), eps)[..., None, None]
        odds = odds.masked_fill(~there[..., None, None], -100.0)
        unary = -torch.cat([torch.zeros_like(odds[:, :1]), odds], 1).log_softmax(1)
        if self.crf is None:
            return (-unary).exp()
        assert images is not None  # with a CRF they are there
        return _refined(self.crf, unary, images)

    def _chosen(self, forward: Forward, wanted: Sequence[Any]) -> tuple[Tensor, list[int]]:
        """Return the classes of each image, (B, K') with at least one column, and how many of them count."""
        names = self.engine.class_names
        logits, scores = forward.logits, self.engine.scores(forward)
        order = scores.argsort(dim=1, descending=True, stable=True).tolist()
        above = (scores > self.min_score).sum(1).tolist()
        rows = [
            best[:count] if given is None else [_index(one, names, logits.shape[1]) for one in given]
            for given, best, count in zip(wanted, order, above, strict=True)
        ]
        for row, given in zip(rows, wanted, strict=True):
            if len(set(row)) < len(row):
                raise TargetError(f"classes={given!r} names a class twice: these are classes {row}. Name each once")
        targets, _ = class_indices(
            [row or best[:1] for row, best in zip(rows, order, strict=True)], logits, None, names
        )
        return targets, list(map(len, rows))

    def __repr__(self) -> str:
        return (
            f"Segmenter({self.engine.about}, {self.pipeline!r}, transform={self.engine.transform!r}, "
            f"background={self.background}, min_score={self.min_score}, crf={self.crf!r})"
        )


def segment(
    model: nn.Module,
    image: Any,
    classes: Classes = None,
    *,
    pipeline: str | Pipeline | Step | Sequence[Step] = "rcam",
    background: float | None = BACKGROUND,
    min_score: float | None = None,
    crf: CRF | bool | None = None,
    activation: Activation | None = None,
    output: Output = None,
    forward_args: Sequence[Any] = (),
    forward_kwargs: Mapping[str, Any] | None = None,
    display: int | Sequence[int] | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    transform: Any = None,
    class_names: Sequence[str] | None = None,
    crop: Crop | None = None,
    precision: Precision = "float32",
    progress: bool = False,
) -> Segmentation | list[Segmentation]:
    """Say which class every pixel of an image is of, with a classifier trained on image labels alone.

    Args:
        model: Any classifier; it is left exactly as it was.
        image: One image or a list of them, see `camtools.explain`.
        classes: Which classes to look for; None for those above `min_score`. See `Segmenter`.
        pipeline: Preset name, steps as text ("NWC,IVR(45)"), `Pipeline`, step, or list of steps.
        background: The map value at which class and background are equally likely; None for the pipeline's threshold.
        min_score: Score above which a class is looked for; None is 0.2 for "softmax" and 0.5 for "sigmoid".
        crf: Whether to refine all classes together by a CRF, or a `camtools.steps.CRF` of your own.
        activation: How logits become scores: "softmax", or "sigmoid" for multi-label models and single logits; None
            goes by the model's output.
        output: Which of the model's outputs holds the class scores; see `camtools.wrap`.
        forward_args: What forward takes after the images; see `camtools.wrap`.
        forward_kwargs: Likewise, by name.
        display: Which channels are drawn, one or three; None draws the first three.
        device: Where to run; a model that lives elsewhere is copied there. None stays with the model.
        batch_size: Images per forward.
        transform: The model's preprocessing; None asks the model.
        class_names: Names of the classes in order; None asks the model.
        crop: What the model is shown; see `Explainer`. None leaves that to the transform.
        precision: "float32", "bf16" or "auto"; see `Explainer`.
        progress: Whether to show a bar, on a terminal or in a notebook.

    Returns:
        One `Segmentation` for a single image, else a list.

    Raises:
        InputError: An image or argument cannot be used.
        TargetError: A class does not exist or is named twice, or `classes` has the wrong length.
        ModelError: The model cannot be explained.
        PipelineError: The pipeline is unknown or impossible.

    Example:
        >>> found = camtools.segment(model, "street.jpg", activation="sigmoid", crf=True)
        >>> found.names, found.mask.shape
    """
    segmenter = Segmenter(
        model,
        pipeline,
        background=background,
        min_score=min_score,
        crf=crf,
        activation=activation,
        output=output,
        forward_args=forward_args,
        forward_kwargs=forward_kwargs,
        display=display,
        device=device,
        batch_size=batch_size,
        transform=transform,
        class_names=class_names,
        crop=crop,
        precision=precision,
        progress=progress,
    )
    return segmenter(image, classes)


def _refined(crf: CRF, unary: Tensor, images: Tensor) -> Tensor:
    """Return the posterior (B, L, H, W) of all classes together, by the CRF's kernels and backend."""
    kernels = (crf.gaussian, crf.bilateral, crf.iterations)
    if crf.on_lattice(unary):
        return lattice.infer(unary[:, None], images, *kernels)[:, 0]
    return infer(unary[:, None], images, *kernels, crf.scale)[:, 0]


def _per_image(classes: Any, count: int, single: bool) -> list[list[Any] | None]:
    """Return the classes that the caller names for each image; None where it is for the scores to say."""
    if isinstance(classes, Tensor | np.ndarray):
        classes = classes.tolist()
    if classes is None:
        return [None] * count
    if not is_list(classes):
        return [[classes]] * count
    listed = list(classes)
    if not listed:
        raise TargetError("classes is empty: expected at least one class, or None for those above min_score")
    if not any(one is None or is_list(one) for one in listed):
        return [listed] * count
    if single or len(listed) != count:
        images = "a single image" if single else f"{count} images"
        raise TargetError(
            f"classes has {len(listed)} items, lists among them, for {images}: expected a flat list of "
            "classes for every image alike, or a list with a list for each"
        )
    return [one if one is None else list(one) if is_list(one) else [one] for one in listed]


def _index(wanted: Any, names: Sequence[str] | None, count: int) -> int:
    return resolve_target(wanted, names if isinstance(wanted, str) else None, count)
