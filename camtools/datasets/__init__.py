"""Data sets with their truth: every one yields the same `Record`."""

from camtools.datasets.base import RecordDataset
from camtools.datasets.record import Record

__all__ = ["Record", "RecordDataset"]
