"""Which images a contact sheet shows: by the IoU of a pipeline's box, or by its change against another pipeline's."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from camtools.errors import InputError
from camtools.evaluation.results import LEVEL_OF, EvaluationResult, level_curve

By = Literal["own", "best"]
Rows = NDArray[np.int64]

AT: dict[str, str] = {"own": "at its own threshold", "best": "at the best threshold"}


def chosen_by(result: EvaluationResult, by: By | None) -> By:
    """Return which box counts: the one asked for, or else the pipeline's own, if it has one.

    Raises:
        InputError: `by` is neither "own" nor "best" nor None, or nothing was measured at own thresholds.
    """
    own = result.rows.own_iou
    if by is not None and by not in AT:
        raise InputError(f"by={by!r}: expected 'own' (the pipeline's own box), 'best' (at the best threshold) or None")
    if by == "own" and own is None:
        raise InputError("by='own': no pipeline has a threshold of its own here. Leave it out, or take 'best'")
    return by or ("best" if own is None or np.isnan(own).all() else "own")


def row_ious(result: EvaluationResult, by: By) -> NDArray[np.float64]:
    """Return the IoU of each pipeline's box in each row, (P, N) float64; NaN in rows without a true box.

    Args:
        result: Of an evaluation.
        by: "own": the box at the pipeline's own threshold. "best": that of the largest contour at the threshold best
            for MaxBoxAcc.
    """
    if by == "own" and result.rows.own_iou is not None:
        return np.asarray(result.rows.own_iou, dtype=np.float64)
    return np.stack([v1[:, level] for v1, level in zip(result.rows.v1, best_levels(result), strict=True)]).astype(float)


def best_levels(result: EvaluationResult) -> list[int]:
    """Return the level that each pipeline's MaxBoxAcc is best at, the smallest of equal ones, P."""
    return [int(LEVEL_OF[np.argmax(curve[LEVEL_OF])]) for curve in level_curve(result.rows, "MaxBoxAcc")]


def extremes(ious: NDArray[np.float64], best: int, worst: int) -> tuple[Rows, Rows]:
    """Return the rows with the largest IoU, largest first, and those with the smallest, smallest first.

    Equal ones stay in the data set's order. No row is in both: the best come first where there are few.

    Args:
        ious: (N,); rows with NaN are left out.
        best: At most so many.
        worst: At most so many.
    """
    known = np.flatnonzero(~np.isnan(ious))
    top = known[np.argsort(-ious[known], kind="stable")][:best]
    rest = known[~np.isin(known, top)]
    return top, rest[np.argsort(ious[rest], kind="stable")][:worst]


def changes(ious: NDArray[np.float64], reference: NDArray[np.float64], gained: int, lost: int) -> tuple[Rows, Rows]:
    """Return the rows whose IoU grew most against a reference, and those whose IoU fell most, the largest change first.

    Args:
        ious: (N,); rows with NaN are left out, and so are those without a change.
        reference: (N,).
        gained: At most so many.
        lost: At most so many.
    """
    change = ious - reference
    up, _ = extremes(np.where(change > 0, change, np.nan), gained, 0)
    _, down = extremes(np.where(change < 0, change, np.nan), 0, lost)
    return up, down


def position_of(result: EvaluationResult, pipeline: str) -> int:
    """Return where a pipeline is in the result.

    Raises:
        InputError: It is not.
    """
    if pipeline not in result.pipelines:
        known = ", ".join(map(repr, result.pipelines))
        raise InputError(f"pipeline={pipeline!r}: expected one of the evaluation's, {known}")
    return result.pipelines.index(pipeline)
