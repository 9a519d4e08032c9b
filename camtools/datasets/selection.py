"""Which images of a data set are evaluated, and what is known of them without opening any."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from torch.utils.data import Subset

from camtools.checks import whole
from camtools.datasets.base import ListedDataset, RecordDataset
from camtools.datasets.labelled import LabelledImages
from camtools.datasets.record import Record
from camtools.datasets.spec import open_dataset
from camtools.errors import InputError

_LOOKED_AT = 64  # records, where a data set cannot tell its labels without drawing images


class Selection:
    """Images of a data set, by their indices in it.

    Args:
        data: A `RecordDataset`, a `torch.utils.data.Subset` of one, a specification for `open_dataset`, or any data set
            of (image, label), see `LabelledImages`.
        limit: At most this many, from the start; None for all.
        every: Every n-th of them, from the first.
        skip: How many to leave out at the start, before the others choose.

    Attributes:
        data: The whole data set.
        indices: Of the images, in order.
        ids: Their ids; None where a data set only tells with the record.
        spec: How the data set is named in settings.

    Raises:
        InputError: It is none of these, gives something else than records, or no image is left.
    """

    def __init__(self, data: Any, limit: int | None = None, every: int = 1, skip: int = 0) -> None:
        if limit is not None:
            whole("limit", limit)
        whole("every", every)
        whole("skip", skip, 0)
        inner: Any = open_dataset(data) if isinstance(data, str) else data
        chosen: list[int] | None = None
        while isinstance(inner, Subset):
            indices = [int(index) for index in inner.indices]
            chosen = indices if chosen is None else [indices[index] for index in chosen]
            inner = inner.dataset
        if not isinstance(inner, RecordDataset) and hasattr(inner, "__getitem__") and not isinstance(inner, list):
            inner = LabelledImages(inner)
        if not isinstance(inner, RecordDataset) or inner.target != "record":
            shown = f"{inner!r} with target={inner.target!r}" if isinstance(inner, RecordDataset) else repr(inner)
            raise InputError(
                f"{shown} cannot be evaluated on: expected a camtools data set of records (target='record'), a Subset "
                "of one, or a specification such as 'boxfolder:data/birds'"
            )
        self.data: RecordDataset = inner
        self.indices = (list(range(len(inner))) if chosen is None else chosen)[skip::every][:limit]
        if not self.indices:
            raise InputError(f"{inner!r} leaves no image to evaluate: expected at least one")
        if len(set(self.indices)) < len(self.indices):
            raise InputError("the Subset names an image twice: expected every image once")
        self.ids = [inner.ids[index] for index in self.indices] if isinstance(inner, ListedDataset) else None
        self.spec = data if isinstance(data, str) else repr(inner)

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        """Return the record with this index in the data set."""
        record: Record = self.data[index]
        return record

    def id_of(self, index: int) -> str:
        """Return the id of the image with this index in the data set; the index itself where it is not known."""
        return str(index) if self.ids is None else self.ids[self.indices.index(index)]

    @property
    def classes(self) -> tuple[str, ...]:
        """The data set's class names."""
        return self.data.classes

    @property
    def occurring(self) -> list[int]:
        """The data set's classes that are known to occur, ascending; all where it can't tell without the images."""
        if isinstance(self.data, ListedDataset):
            return sorted({label for labels in self._known for label in labels})
        return list(range(len(self.classes)))

    @property
    def multilabel(self) -> bool:
        """Whether any image has objects of several classes."""
        return any(len(set(labels)) > 1 for labels in self._known)

    def fingerprint(self) -> dict[str, Any]:
        """Say which images these are, comparably between runs."""
        named = "\n".join(map(str, self.indices if self.ids is None else self.ids))
        digest = hashlib.sha256(named.encode()).hexdigest()[:16]
        return {"data": self.spec, "images": len(self), "ids": digest}

    @cached_property
    def _known(self) -> list[list[int]]:
        """The labels of all images, or of the first few."""
        if isinstance(self.data, ListedDataset):
            return [self.data.labels_of(index) for index in self.indices]
        return [self.record(index).labels.tolist() for index in self.indices[:_LOOKED_AT]]
