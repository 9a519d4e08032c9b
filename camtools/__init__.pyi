from . import callbacks as callbacks
from . import classes as classes
from . import datasets as datasets
from . import evaluation as evaluation
from . import exports as exports
from . import heads as heads
from . import images as images
from . import metrics as metrics
from . import model as model
from . import pipeline as pipeline
from . import plot as plot
from . import runtime as runtime
from . import sources as sources
from . import steps as steps
from . import training as training
from .clip import ZeroShot, zero_shot
from .context_bank import ContextBank
from .errors import CamtoolsError, InputError, ModelError, PipelineError, TargetError, WeightsError
from .evaluation import EvaluationResult, calibrate, evaluate
from .explainer import Explainer, explain
from .explanation import Explanation
from .exports import export, results_frame
from .images.preprocess import Preprocess
from .loading import load_model
from .model.cam_model import CamModel, wrap
from .onnx_graph import to_onnx
from .pipeline.pipeline import Pipeline
from .pipeline.presets import PRESETS, preset
from .segmentation import Segmentation
from .segmenter import Segmenter, segment
from .training import FinetuneResult, finetune

__version__: str

__all__ = [
    "PRESETS",
    "CamModel",
    "CamtoolsError",
    "ContextBank",
    "EvaluationResult",
    "Explainer",
    "Explanation",
    "FinetuneResult",
    "InputError",
    "ModelError",
    "Pipeline",
    "PipelineError",
    "Preprocess",
    "Segmentation",
    "Segmenter",
    "TargetError",
    "WeightsError",
    "ZeroShot",
    "calibrate",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "load_model",
    "preset",
    "results_frame",
    "segment",
    "to_onnx",
    "wrap",
    "zero_shot",
]
