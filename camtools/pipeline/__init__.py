"""Pipelines of steps: ready-made presets, pipelines written as text, and the map after every step."""

from camtools.pipeline.pipeline import Pipeline
from camtools.pipeline.presets import PRESETS, preset
from camtools.pipeline.text import named_pipelines
from camtools.pipeline.trace import TraceStep

__all__ = ["PRESETS", "Pipeline", "TraceStep", "named_pipelines", "preset"]
