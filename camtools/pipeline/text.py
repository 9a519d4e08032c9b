"""Pipelines by name, from presets, objects, and steps written as text."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camtools import steps as step_classes
from camtools.errors import CamtoolsError, PipelineError
from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import PRESETS, as_pipeline
from camtools.steps import Step


def named_pipelines(given: Any) -> dict[str, Pipeline]:
    """Return pipelines by their names, in order.

    Args:
        given: Text, see `parse_pipelines`; a `Pipeline` or step, named by its steps; a list of any of these (a list in
            it is one pipeline's steps, and so is a list of steps alone); or a mapping from names to any of these.

    Raises:
        PipelineError: None is given, a pipeline is impossible, or two have the same name.
    """
    pipelines: dict[str, Pipeline] = {}
    for name, pipeline in _pairs(given):
        if name in pipelines:
            raise PipelineError(
                f"There are two pipelines {name!r}. Give each a name of its own: name=steps, or a dict."
            )
        pipelines[name] = pipeline
    if not pipelines:
        raise PipelineError("No pipeline is given. Name at least one, such as 'cam'.")
    return pipelines


def one_pipeline(given: str | Pipeline | Step | Iterable[Step]) -> tuple[Pipeline, str]:
    """Return a pipeline and its name, for those who take one: a preset's name, steps as text or objects.

    Raises:
        PipelineError: It is no pipeline, or several.
    """
    if not isinstance(given, str):
        pipeline = as_pipeline(given)
        return pipeline, pipeline.summary
    if not given.strip() or given in PRESETS:
        return as_pipeline(given), given
    named = parse_pipelines(given)
    if len(named) != 1:
        raise PipelineError(f"{given!r} are {len(named)} pipelines: expected one. Call once for each.")
    return named[0][1], named[0][0]


def parse_pipelines(text: str) -> list[tuple[str, Pipeline]]:
    """Read pipelines from text: entries with ";" between them.

    An entry is a list of presets, "cam,rcam", each of them a pipeline; or a list of steps, "NWC,IVR(45)", which make
    one pipeline, complete as `Pipeline` completes it. "NAME=" before steps names that pipeline; else its own text does.

    Raises:
        PipelineError: An entry is neither.
    """
    pipelines = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        names = [name.strip() for name in entry.split(",") if name.strip()]
        if all((name in PRESETS or name.isidentifier()) and name not in _known() for name in names):
            pipelines += [(name, as_pipeline(name)) for name in names]
            continue
        label, equals, body = entry.partition("=")
        named = equals and label.strip().replace("-", "_").isidentifier()
        name, body = (label.strip(), body) if named else (entry.replace(" ", ""), entry)
        pipelines.append((name, _parse_steps(body)))
    return pipelines


def _pairs(given: Any) -> Iterable[tuple[str, Pipeline]]:
    if isinstance(given, str):
        return parse_pipelines(given)
    if isinstance(given, Mapping):
        return [(str(name), _single(value)) for name, value in given.items()]
    if isinstance(given, Pipeline | Step):
        return [(as_pipeline(given).summary, as_pipeline(given))]
    if not isinstance(given, Sequence):
        raise PipelineError(f"pipeline={given!r}: expected a preset's name, a Pipeline, steps, or a list of pipelines.")
    if given and all(isinstance(item, Step) for item in given):
        return [(Pipeline(given).summary, Pipeline(given))]
    pairs: list[tuple[str, Pipeline]] = []
    for item in given:
        pairs += parse_pipelines(item) if isinstance(item, str) else [(_single(item).summary, _single(item))]
    return pairs


def _single(value: Any) -> Pipeline:
    if isinstance(value, str) and value not in PRESETS:
        ((_, pipeline),) = parse_pipelines(value) or [("", as_pipeline(value))]
        return pipeline
    return as_pipeline(value)


def _parse_steps(text: str) -> Pipeline:
    """Read "NWC,IVR(45)": calls of the classes in `camtools.steps` with literal arguments, and nothing else."""
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        assert isinstance(tree, ast.List)
        return Pipeline([_parse_step(node) for node in tree.elts])
    except CamtoolsError:
        raise
    except (SyntaxError, ValueError, TypeError, AssertionError, MemoryError, RecursionError) as error:
        known = ", ".join(_known())
        raise PipelineError(
            f"{text!r} is neither presets nor steps ({error}). Write presets with commas ({', '.join(PRESETS)}), or "
            f"steps, such as 'NWC,IVR(45)', of: {known}."
        ) from error


def parse_step(text: str) -> Step:
    """Read one step as it prints: a call of a class in `camtools.steps` with literal arguments.

    Raises:
        PipelineError: It is something else.
    """
    try:
        return _parse_step(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise PipelineError(f"{text!r} is no step of camtools ({error}), such as 'MinMax()'.") from error


def _parse_step(node: ast.expr) -> Step:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name not in _known():
        raise ValueError(f"{ast.unparse(node)!r} is no step")
    arguments = [ast.literal_eval(value) for value in call.args]
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("** is not allowed")
    options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    step: Step = getattr(step_classes, name)(*arguments, **options)
    return step


def _known() -> list[str]:
    """Return the names of all steps that can be built."""
    public = {name: getattr(step_classes, name) for name in step_classes.__all__}
    return [n for n, item in public.items() if isinstance(item, type) and issubclass(item, Step) and item is not Step]
