"""One figure of fixed images' explanations, sent to a logger."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from camtools.defaults import DEFAULT_PRESET
from camtools.errors import InputError
from camtools.explainer import Explainer
from camtools.plot import compare

TAG = "explanations"


def log_explanations(
    model: nn.Module,
    images: Any,
    logger: Any,
    step: int,
    *,
    target: Any = None,
    pipeline: Any = DEFAULT_PRESET,
    tag: str = TAG,
    **options: Any,
) -> Image.Image:
    """Explain images by a model in training, and log them as one figure: does it come to look at the object?

    The model is explained in eval mode and left exactly as it was, training flags included.

    Args:
        model: The classifier.
        images: A list of images, the same at every call; see `camtools.explain`.
        logger: Where the figure goes: see `send_image`.
        step: Its step.
        target: A class for each image, or one for all; None takes the likeliest, which may change. Give the true
            classes to see what the model learns of them.
        pipeline: Preset name, `Pipeline`, step, or list of steps.
        tag: The figure's name in the log.
        **options: Of `Explainer`: `transform`, `class_names`, `device`, ...

    Returns:
        The figure, RGB.

    Raises:
        InputError: An image cannot be used, or the logger is of no known kind.
        ModelError: The model cannot be explained.

    Example:
        >>> writer = SummaryWriter("runs/a")
        >>> for epoch in range(10):
        ...     train(model)
        ...     camtools.callbacks.log_explanations(model, photos, writer, epoch, target=labels)
    """
    found = Explainer(model, pipeline, **options)(list(images), target=target)
    drawn = compare(found, titles=[""] * len(found))
    send_image(logger, tag, drawn, step)
    return drawn


def send_image(logger: Any, tag: str, image: Image.Image, step: int) -> None:
    """Log an image.

    Args:
        logger: TensorBoard's `SummaryWriter`; an `Accelerator` or one of its trackers; a logger of Lightning; a W&B
            run; MLflow (the module, or a run); a function of (tag, image, step); or a list of these. Of trackers and
            loggers, those that stand for TensorBoard, W&B or MLflow.
        tag: The image's name in the log.
        image: RGB.
        step: Its step. W&B has steps of its own; there it is logged beside the image, as "TAG_step".

    Raises:
        InputError: The logger is none of these.
    """
    known = logger.__name__ if isinstance(logger, ModuleType) else type(logger).__module__
    library = known.partition(".")[0]
    if isinstance(logger, (list, tuple)):
        for each in logger:
            send_image(each, tag, image, step)
    elif hasattr(logger, "add_image"):
        logger.add_image(tag, np.asarray(image), step, dataformats="HWC")
    elif hasattr(logger, "trackers"):
        send_image(logger.trackers, tag, image, step)
    elif hasattr(logger, "run_id") and hasattr(logger, "experiment"):  # Lightning's, of MLflow
        logger.experiment.log_image(logger.run_id, image, key=tag, step=step)
    elif hasattr(logger, "experiment"):  # Lightning's, of TensorBoard and W&B
        send_image(logger.experiment, tag, image, step)
    elif hasattr(logger, "tracker"):  # accelerate's
        send_image(logger.tracker, tag, image, step)
    elif library == "wandb":
        logger.log({tag: sys.modules["wandb"].Image(image), f"{tag}_step": step})
    elif library == "mlflow":
        mlflow = sys.modules["mlflow"]
        run = logger.active_run() or logger.start_run() if isinstance(logger, ModuleType) else logger
        mlflow.MlflowClient().log_image(run.info.run_id, image, key=tag, step=step)
    elif callable(logger):
        logger(tag, image, step)
    else:
        raise InputError(
            f"logger={logger!r}: expected a SummaryWriter, an Accelerator or a tracker of it, a logger of Lightning, a "
            "W&B run, MLflow or a run of it, a function of (tag, image, step), or a list of these"
        )
