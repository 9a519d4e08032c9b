"""Fully connected conditional random fields: mean-field inference with Gaussian and bilateral kernels."""

from camtools.steps.dense_crf.mean_field import mean_field

__all__ = ["mean_field"]
