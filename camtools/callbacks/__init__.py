"""Explanations of the same few images throughout a training, in whatever logs it: Lightning, HF Trainer, or a loop.

`camtools.callbacks.lightning` and `camtools.callbacks.huggingface` have an `ExplanationCallback` each.
"""

from camtools.callbacks.panel import log_explanations, send_image

__all__ = ["log_explanations", "send_image"]
