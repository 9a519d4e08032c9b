"""The pipeline: a flat list of steps, checked when built, from features and weights to masks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, overload

from torch import Tensor, nn

from camtools.errors import PipelineError
from camtools.pipeline.trace import TraceStep
from camtools.steps import CAM, Enlarge, FixedThreshold, MinMax, Peaks, Stage, State, Step

_ORDER = "one input step, weights steps, one map step, refine steps, one threshold step, one parts step"
_ONCE = {Stage.INPUT: "choose the input", Stage.MAP: "make the maps", Stage.THRESHOLD: "threshold"}
_ONCE[Stage.PARTS] = "split the masks"


class Pipeline(Sequence[Step]):
    """Steps in the order in which they run; an immutable sequence that is called with a `State`.

    Steps on the feature grid run first. Then, once, `State.resize` takes the maps to the original images' pixels,
    and the steps on those pixels run. What a list leaves out is filled in, and shows in the `repr`: `CAM()` after the
    weights steps where there is no map step; `MinMax()` as the last refine step where no step normalises (one with a
    true class attribute `normalises`, such as `IVR`); `FixedThreshold()` where nothing thresholds. So
    `Pipeline([NWC()])` is complete, and `Pipeline([])` is plain CAM. A refine step that comes after the normalising one
    has to keep the maps within [0, 1], as thresholds expect; that is not checked.

    Args:
        steps: One step, or any number of them: at most one input step, weights steps, at most one map step, refine
            steps, at most one threshold step, at most one step that splits the masks (`Peaks`), in this order, and none
            on the feature grid after one on the image's pixels.

    Raises:
        PipelineError: The list holds something that is not a step, or the steps can't work in that order.

    Example:
        >>> Pipeline([NWC(), PaS(percentile=90)])
        Pipeline([
            NWC(),
            CAM(relu=False),
            MinMax(),
            PaS(percentile=90, threshold=0.45),
        ])
    """

    def __init__(self, steps: Step | Iterable[Step]) -> None:
        self._steps = _complete(_checked(steps))

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, those filled in included."""
        return self._steps

    @property
    def needs_image(self) -> bool:
        """Whether any step reads `State.images`."""
        return any(step.needs_image for step in self._steps)

    @property
    def needs_pyramid(self) -> int:
        """How many of `State.pyramid` the steps look at."""
        return max(step.needs_pyramid for step in self._steps)

    @property
    def needs_gradients(self) -> int:
        """At how many of `State.pyramid` the steps ask for gradients."""
        return max(step.needs_gradients for step in self._steps)

    @property
    def scale(self) -> float:
        """Sides of the input that the maps are made from over the model's own; 1 without `Enlarge`."""
        first = self._steps[0]
        return first.scale if isinstance(first, Enlarge) else 1.0

    @property
    def pixel_steps(self) -> tuple[Step, ...]:
        """The refine steps that work on the image's pixels: what makes the map of the resized one."""
        return tuple(step for step in self._steps if _on_image(step) and step.stage == Stage.REFINE)

    def fitted(self, model: nn.Module) -> Pipeline:
        """Return the pipeline with what its steps need of the model that is explained, see `Step.fitted`.

        Raises:
            PipelineError: The model lacks it.
        """
        return Pipeline(step.fitted(model) for step in self._steps)

    @property
    def peaks(self) -> Peaks | None:
        """The step that splits masks into parts; None keeps connected parts whole."""
        return self._steps[-1] if isinstance(self._steps[-1], Peaks) else None

    @property
    def summary(self) -> str:
        """The steps on one line, with their parameters' values: "NWC, CAM, MinMax, PaS(98, 0.45)"."""
        return ", ".join(map(_brief, self._steps))

    def __call__(self, state: State) -> State:
        """Run all steps: `features`, then `image`.

        Args:
            state: A batch with features and weights; or with finished maps on the feature grid and no weights.

        Returns:
            The state with `raw_maps` (B, K', h, w), normalised `maps` (B, K', H, W), `masks` and `thresholds`, and
            `parts` where a step splits the masks.

        Raises:
            PipelineError: The state lacks what a step needs.
        """
        return self.image(self.features(state))

    def trace(self, state: State) -> tuple[State, tuple[TraceStep, ...]]:
        """Run all steps like a call, and keep the maps after every step.

        The first entry is where the maps start: "weights as trained" where there are weights steps, or "maps as given".
        After a weights step the maps are those that the map step would make of the weights so far. "resize" is an
        entry as well.

        Args:
            state: As for a call.

        Returns:
            What the call returns, bit for bit, and the entries, with maps (B, K', h, w) or (B, K', H, W).

        Raises:
            PipelineError: The state lacks what a step needs.
        """
        trace: list[TraceStep] = []
        return self.image(self.features(state, trace), trace), tuple(trace)

    def features(self, state: State, trace: list[TraceStep] | None = None) -> State:
        """Run the steps on the feature grid, up to but without the resize.

        Nothing here depends on the images' sizes, so that images of different sizes can share a batch.

        Args:
            state: A batch with features and weights. Or with maps that the caller brings, from another method, and no
                weights: these pass the map step by and go straight to the refine steps.
            trace: A list to which the maps after every step are appended, see `trace`.

        Returns:
            The state with signed `maps` and with `raw_maps`, both (B, K', h, w) and the same unless a refine step
            works on the feature grid.

        Raises:
            PipelineError: There are neither maps nor features and weights, or both maps and weights, or maps without
                the weights that a weights step needs.
        """
        brings_maps = state.maps is not None
        if brings_maps and state.weights is not None:
            raise PipelineError(
                "This state has both maps and weights, so it is unclear whether to make the maps or to take these. Set "
                "one to None: state.replace(maps=None) to start over, state.replace(weights=None) to keep the maps."
            )
        if trace is not None:
            trace.extend(self._start(state))
        for position, step in enumerate(self._steps):
            if step.stage == Stage.INPUT:
                continue
            if step.stage == Stage.WEIGHTS and brings_maps:
                raise PipelineError(
                    f"{step!r} needs weights, but this state brings finished maps without them. Use a pipeline without "
                    f"{step!r}, or start from a State with features and weights."
                )
            if step.stage <= Stage.MAP and not brings_maps:
                state = step(state)
            if step.stage == Stage.MAP:
                state = state.replace(raw_maps=state.require("maps", step))
            if step.stage == Stage.REFINE and not _on_image(step):
                state = step(state)
            if trace is not None and not _on_image(step) and not (step.stage == Stage.MAP and brings_maps):
                trace.append(self._traced(position, state))
        return state.replace(backward=None)  # nothing needs the graph from here on

    def image(self, state: State, trace: list[TraceStep] | None = None) -> State:
        """Resize the maps, where `state.resize` says how, and run the steps on the image's pixels.

        Args:
            state: What `features` returned, with images of one size.
            trace: A list to which the maps after every step are appended, see `trace`.

        Returns:
            The state with normalised `maps` (B, K', H, W), `masks` and `thresholds`, and `parts` where a step splits
            the masks. Its `resize` is None, so that it is not applied twice.

        Raises:
            PipelineError: There are no maps, or a step needs `images` and there are none.
        """
        if state.resize is not None:
            state = state.replace(maps=state.resize(state.require("maps", type(self).__name__)), resize=None)
            if trace is not None:
                before = any(_normalises(step) for step in self._steps if not _on_image(step))
                trace.append(TraceStep("resize", "resize", state.require("maps", self), None, before))
        for position, step in enumerate(self._steps):
            if _on_image(step):
                state = step(state)
                if trace is not None:
                    trace.append(self._traced(position, state))
        return state

    def _start(self, state: State) -> list[TraceStep]:
        """Return the entry that comes before the steps', or none where the first step makes the maps."""
        if state.maps is not None:
            return [TraceStep("maps as given", "map", state.maps)]
        weights = [step for step in self._steps if step.stage == Stage.WEIGHTS]
        if weights:
            return [TraceStep("weights as trained", "weights", self._preview(state, weights[0]))]
        return []

    def _traced(self, position: int, state: State) -> TraceStep:
        """Return the entry of the step at this position, which has just run."""
        step = self._steps[position]
        maps = self._preview(state, step) if step.stage == Stage.WEIGHTS else state.require("maps", step)
        masks = state.masks if step.stage >= Stage.THRESHOLD else None
        normalised = any(map(_normalises, self._steps[: position + 1]))
        return TraceStep(repr(step), step.stage.name.lower(), maps, masks, normalised)

    def _preview(self, state: State, step: Step) -> Tensor:
        """Return the maps that the weights so far would make: CAM's, or those of a map step of another kind."""
        state.require("weights", step)  # the step that lacks them is named, not CAM
        map_step = next(own for own in self._steps if own.stage == Stage.MAP)
        maker = CAM() if isinstance(map_step, CAM) else map_step
        return maker(state).require("maps", maker)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        """Return one step, or a tuple of them to build another pipeline from: `Pipeline([*p[:-1], PaS()])`."""
        return self._steps[index]

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return "Pipeline([\n" + "".join(f"    {step!r},\n" for step in self._steps) + "])"


def _normalises(step: Step) -> bool:
    """Whether a step takes the maps to [0, 1]."""
    return bool(getattr(step, "normalises", False))


def _brief(step: Step) -> str:
    """Write a step in short: numbers and words by position, flags by name and only where set."""
    name = type(step).__name__
    values = {key: getattr(step, key, None) for key in inspect.signature(type(step)).parameters}
    plain = {key: value for key, value in values.items() if isinstance(value, (int, float, str, tuple))}
    shown = [key if value is True else str(value) for key, value in plain.items() if value is not False]
    return f"{name}({', '.join(shown)})" if shown else name


def _on_image(step: Step) -> bool:
    """Whether a step works on the image's pixels; from the threshold on all do, weights and map steps never."""
    return step.stage >= Stage.THRESHOLD or (step.stage == Stage.REFINE and step.resolution == "image")


def _checked(steps: Any) -> list[Step]:
    """Return the steps as a list, all of them steps and in a possible order."""
    if isinstance(steps, Step):
        steps = [steps]
    try:
        listed = None if isinstance(steps, str | type) else list(steps)
    except (TypeError, RuntimeError):  # no iterable, or a tensor without an axis or values
        listed = None
    if listed is None:
        raise PipelineError(f"A pipeline is made of steps. {_not_a_step(steps)}")
    for position, step in enumerate(listed):
        if not isinstance(step, Step):
            raise PipelineError(f"Item {position} of the pipeline is not a step. {_not_a_step(step)}")
    for before, after in pairwise(listed):
        _check_order(before, after)
    return listed


def _check_order(before: Step, after: Step) -> None:
    """Check that two neighbours can follow each other."""
    if before.stage == after.stage and before.stage in _ONCE:
        does = f"{_ONCE[before.stage]}; a pipeline has one {before.stage.name.lower()} step"
        raise PipelineError(f"{before!r} and {after!r} both {does}. Remove one.")
    if before.stage > after.stage:
        raise PipelineError(
            f"{after!r} ({after.stage.name.lower()}) can't come after {before!r} ({before.stage.name.lower()}). Put "
            f"{after!r} before {before!r}; the order is: {_ORDER}."
        )
    if _on_image(before) and not _on_image(after):
        raise PipelineError(
            f"{after!r} works on the feature grid and can't come after {before!r}, which works on the image's "
            f"pixels: the maps are resized once in between. Put {after!r} before {before!r}."
        )


def _not_a_step(item: object) -> str:
    """Return words for what was given instead of a step, and what was probably meant."""
    if isinstance(item, type) and issubclass(item, Step):
        return f"Got the class {item.__name__} itself; write {item.__name__}(), with parentheses."
    got = f"Got {item!r} ({type(item).__name__}). "
    if isinstance(item, str):
        return got + f"If it is a preset's name, unpack its steps: [*preset({item!r}), ...]."
    if isinstance(item, Pipeline):
        return got + "Pipelines don't nest; unpack its steps: [*pipeline, ...]."
    return got + f"Expected an instance of camtools.steps.Step; the order is: {_ORDER}."


def _complete(steps: list[Step]) -> tuple[Step, ...]:
    """Fill in the map, normalising and threshold steps that are missing."""
    first = [step for step in steps if step.stage <= Stage.WEIGHTS]
    maps = [step for step in steps if step.stage == Stage.MAP] or [CAM()]
    refine = [step for step in steps if step.stage == Stage.REFINE]
    if not any(getattr(step, "normalises", False) for step in refine):
        refine.append(MinMax())
    threshold = [step for step in steps if step.stage == Stage.THRESHOLD] or [FixedThreshold()]
    return (*first, *maps, *refine, *threshold, *(step for step in steps if step.stage == Stage.PARTS))
