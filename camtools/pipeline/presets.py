"""Presets, pipelines that have a name; and `as_pipeline`, which accepts all that a caller may give for a pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from camtools.defaults import DESCRIPTIONS
from camtools.errors import PipelineError
from camtools.pipeline.pipeline import Pipeline
from camtools.steps import (
    CAM,
    CREAM,
    CRF,
    NWC,
    AbsoluteNegative,
    AdaptiveThreshold,
    Affinity,
    EdgeLevel,
    Enlarge,
    FixedThreshold,
    Gradient,
    MinMax,
    PaS,
    RangeThreshold,
    Step,
)


class Preset(NamedTuple):
    """A pipeline that has a name.

    Attributes:
        factory: Builds the pipeline, a new one at every call.
        description: What it does, in one line.
    """

    factory: Callable[[], Pipeline]
    description: str


def _cam() -> Pipeline:
    return Pipeline([CAM(), MinMax(), FixedThreshold(0.2)])


def _rcam() -> Pipeline:
    return Pipeline([NWC(), CAM(), MinMax(), PaS(98)])


def _adaptive() -> Pipeline:
    return Pipeline([AbsoluteNegative(), CAM(), MinMax(), AdaptiveThreshold()])


def _cream() -> Pipeline:
    return Pipeline([CAM(), CREAM(centre=True), MinMax(), FixedThreshold(0.5)])


def _rcam_crf() -> Pipeline:
    return Pipeline(
        [
            NWC(),
            CAM(),
            MinMax(),
            CRF(background=0.45, gaussian=(3, 1), bilateral=(80, 13, 2)),
            FixedThreshold(0.5),
        ]
    )


def _fast() -> Pipeline:
    return Pipeline([CAM(), Affinity(levels=2, power=2), MinMax(), RangeThreshold(30, 0.3)])


def _best() -> Pipeline:
    return Pipeline(_best_steps())


def _best_enlarge() -> Pipeline:
    return Pipeline([Enlarge(1.43), *_best_steps()])


def _best_steps() -> list[Step]:
    return [
        Gradient("product", levels=(0, 1, 2)),
        Affinity(levels=2, power=3),
        EdgeLevel(),
        MinMax(),
        FixedThreshold(0.48),
    ]


_FACTORIES: dict[str, Callable[[], Pipeline]] = {
    "cam": _cam,
    "rcam": _rcam,
    "adaptive": _adaptive,
    "cream": _cream,
    "rcam+crf": _rcam_crf,
    "fast": _fast,
    "best": _best,
    "best+enlarge": _best_enlarge,
}
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: Preset(factory, DESCRIPTIONS[name]) for name, factory in _FACTORIES.items()}
)
"""Every preset by its name."""


def preset(name: str) -> Pipeline:
    """Return a new pipeline by its name.

    Args:
        name: A key of `PRESETS`.

    Raises:
        PipelineError: There is no preset of that name; lists the presets and names the closest.
    """
    if name in PRESETS:
        return PRESETS[name].factory()
    close = difflib.get_close_matches(str(name).lower(), PRESETS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise PipelineError(f"There is no pipeline {name!r}.{hint} Presets: {', '.join(map(repr, PRESETS))}.")


def as_pipeline(pipeline: str | Pipeline | Step | Iterable[Step]) -> Pipeline:
    """Return the pipeline that a name or steps stand for.

    Args:
        pipeline: A preset's name; a pipeline, which is returned as it is; one step; or several. What steps leave out is
            filled in, see `Pipeline`.

    Raises:
        PipelineError: The name is unknown, or the steps can't form a pipeline.
    """
    if isinstance(pipeline, str):
        return preset(pipeline)
    return pipeline if isinstance(pipeline, Pipeline) else Pipeline(pipeline)
