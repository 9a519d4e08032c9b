"""Fully connected conditional random fields: mean-field inference with Gaussian and bilateral kernels."""

from camtools.crf.mean_field import mean_field

__all__ = ["mean_field"]
