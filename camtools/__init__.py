"""camtools: class activation maps, masks and boxes for classifiers that people already have.

`explain(model, image)` says where a classifier sees a class; `Explainer` is its reusable form; `wrap(model)` gives the
classifier's last features, class weights and maps, differentiable; `Pipeline` and `steps` change how maps are made;
`evaluate(model, dataset, pipeline)` measures them.
"""

from typing import TYPE_CHECKING, Any

from camtools import plot, steps
from camtools.adapter import Adapter, FeatureSpec
from camtools.context_bank import ContextBank
from camtools.decomposition import Decomposition
from camtools.errors import CamtoolsError, InputError, ModelError, PipelineError, TargetError, WeightsError
from camtools.explainer import Explainer, explain
from camtools.explanation import Explanation
from camtools.geometry import Geometry
from camtools.layout import Layout
from camtools.loading import LoadedModel, load_model
from camtools.model import CamModel, wrap
from camtools.pipeline import Pipeline
from camtools.preprocess import Preprocess
from camtools.presets import PRESETS, preset
from camtools.trace import TraceStep

if TYPE_CHECKING:
    from camtools.evaluation import EvaluationResult, calibrated, evaluate

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Adapter",
    "CamModel",
    "CamtoolsError",
    "ContextBank",
    "Decomposition",
    "EvaluationResult",
    "Explainer",
    "Explanation",
    "FeatureSpec",
    "Geometry",
    "InputError",
    "Layout",
    "LoadedModel",
    "ModelError",
    "Pipeline",
    "PipelineError",
    "Preprocess",
    "TargetError",
    "TraceStep",
    "WeightsError",
    "calibrated",
    "evaluate",
    "explain",
    "load_model",
    "plot",
    "preset",
    "steps",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import the evaluation when it is first asked for: it brings torchmetrics, which takes a second."""
    if name in ("EvaluationResult", "calibrated", "evaluate"):
        from camtools import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
