"""camtools: class activation maps, masks and boxes for classifiers that people already have.

`explain(model, image)` says where a classifier sees a class; `Explainer` is its reusable form; `wrap(model)` gives the
classifier's last features, class weights and maps, differentiable; `Pipeline` and `steps` change how maps are made;
`segment(model, image)` makes a semantic mask of several classes; `evaluate(model, dataset, pipeline)` measures maps.
"""

from typing import TYPE_CHECKING, Any

from camtools import heads, plot, steps
from camtools.adapter import Adapter, FeatureSpec
from camtools.box_regressor import BoxRegressor
from camtools.context_bank import ContextBank
from camtools.decomposition import Decomposition
from camtools.errors import CamtoolsError, InputError, ModelError, PipelineError, TargetError, WeightsError
from camtools.explainer import Explainer, explain
from camtools.explanation import Explanation
from camtools.geometry import Geometry
from camtools.heads import HeadedModel, load_headed, replace_head
from camtools.layout import Layout
from camtools.loading import LoadedModel, load_model
from camtools.model import CamModel, wrap
from camtools.output_stride import set_output_stride
from camtools.pipeline import Pipeline
from camtools.preprocess import Preprocess
from camtools.presets import PRESETS, preset
from camtools.segmentation import Segmentation
from camtools.segmenter import Segmenter, segment
from camtools.trace import TraceStep

if TYPE_CHECKING:
    from camtools.evaluation import EvaluationResult, calibrated, evaluate
    from camtools.training import FinetuneResult, Recipe, finetune

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Adapter",
    "BoxRegressor",
    "CamModel",
    "CamtoolsError",
    "ContextBank",
    "Decomposition",
    "EvaluationResult",
    "Explainer",
    "Explanation",
    "FeatureSpec",
    "FinetuneResult",
    "Geometry",
    "HeadedModel",
    "InputError",
    "Layout",
    "LoadedModel",
    "ModelError",
    "Pipeline",
    "PipelineError",
    "Preprocess",
    "Recipe",
    "Segmentation",
    "Segmenter",
    "TargetError",
    "TraceStep",
    "WeightsError",
    "calibrated",
    "evaluate",
    "explain",
    "finetune",
    "heads",
    "load_headed",
    "load_model",
    "plot",
    "preset",
    "replace_head",
    "segment",
    "set_output_stride",
    "steps",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import the evaluation when it is first asked for: it brings torchmetrics, which takes a second."""
    if name in ("EvaluationResult", "calibrated", "evaluate"):
        from camtools import evaluation

        return getattr(evaluation, name)
    if name in ("FinetuneResult", "Recipe", "finetune"):
        from camtools import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
