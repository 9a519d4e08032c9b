"""From the tables of all batches to rows and ranked detections."""

from __future__ import annotations

import numpy as np

from camtools.errors import InputError
from camtools.evaluation.results import Ranked, Rows
from camtools.evaluation.scores import Arrays
from camtools.evaluation.summary import Measured

_PAIRED = ("v1", "v2", "own_iou", "own_threshold", "own_box", "pointing")
_MASKED = ("mask_iou", "own_mask_iou", "on_objects", "elsewhere")


def assemble(tables: Arrays, failed: list[tuple[int, str, str]], pipelines: tuple[str, ...]) -> Measured:
    """Return the rows of an evaluation.

    Args:
        tables: From `camtools.evaluation.store.merged`.
        failed: Pictures that could not be evaluated: (index, id, error).
        pipelines: Their names.

    Raises:
        InputError: There is no row.
    """
    if not tables or not len(tables["rows/index"]):
        first = f" The first, {failed[0][1]!r}: {failed[0][2]}" if failed else ""
        raise InputError(
            f"no picture could be evaluated: {len(failed)} failed, and the others have neither boxes nor masks.{first}"
        )
    ends = np.cumsum(tables["rows/truths"])[:-1]
    # A row's arrays are (N, P, ...), for they grow by rows; results have the pipelines first.
    swapped = {name: np.ascontiguousarray(tables[f"rows/{name}"].swapaxes(0, 1)) for name in _PAIRED}
    masked = {
        name: np.ascontiguousarray(tables[f"rows/{name}"].swapaxes(0, 1))
        for name in _MASKED
        if f"rows/{name}" in tables
    }
    rows = Rows(
        index=tables["rows/index"],
        ids=tables["rows/id"].tolist(),
        labels=tables["rows/label"],
        names=tables["rows/name"].tolist(),
        sizes=tables["rows/size"],
        truth=np.split(tables["truth/box"], ends),
        rank=tables["rows/rank"],
        score=tables["rows/score"],
        **swapped,
        **masked,
    )
    detections: dict[str, dict[str, Ranked]] = {}
    for number, name in enumerate(pipelines):
        for kind in ("boxes", "points"):
            if f"{kind}{number}/index" in tables:
                detections.setdefault(name, {})[kind] = Ranked(
                    picture=tables[f"{kind}{number}/index"],
                    label=tables[f"{kind}{number}/label"],
                    score=tables[f"{kind}{number}/score"],
                    correct=tables[f"{kind}{number}/correct"],
                    true_picture=tables[f"true_{kind}{number}/index"],
                    true_label=tables[f"true_{kind}{number}/label"],
                )
    return Measured(pipelines, rows, detections)
