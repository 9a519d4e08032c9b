"""The VOC devkit's average precision of detections once more, one after the other: slow, for tests only."""

import numpy as np


def devkit(preds, target, label, minimum=0.5, extra=1.0, points=False):
    """VOCevaldet.m in plain Python: one detection after the other."""
    rows = [
        (score, index, box)
        for index, pred in enumerate(preds)
        for box, score, own in zip(
            pred["boxes"].tolist(), pred["scores"].tolist(), pred["labels"].tolist(), strict=True
        )
        if own == label
    ]
    rows.sort(key=lambda row: -row[0])  # stable
    truth, taken, objects = {}, set(), 0
    for index, true in enumerate(target):
        own = true["labels"] == label
        truth[index] = list(zip(true["boxes"][own].tolist(), true["difficult"][own].tolist(), strict=True))
        objects += sum(not hard for _, hard in truth[index])
    outcome = []
    for _, index, (x0, y0, x1, y1) in rows:
        best, chosen = -1.0, None
        for number, ((u0, v0, u1, v1), hard) in enumerate(truth[index]):
            width = min(x1, u1) - max(x0, u0) + extra
            height = min(y1, v1) - max(y0, v0) + extra
            if width > 0 and height > 0:
                area = (x1 - x0 + extra) * (y1 - y0 + extra) + (u1 - u0 + extra) * (v1 - v0 + extra)
                overlap = width * height / (area - width * height)
                if overlap > best:
                    best, chosen = overlap, (index, number, hard)
        if best >= minimum:
            if not chosen[2]:
                outcome.append(chosen not in taken)
                taken.add(chosen)
        else:
            outcome.append(False)
    right, wrong = np.cumsum(outcome), np.cumsum(np.logical_not(outcome))
    if objects == 0:
        return None
    recall, precision = right / objects, right / np.maximum(right + wrong, 1)
    if points:
        return 100 * np.mean([max(precision[recall >= k / 10 - 1e-12], default=0.0) for k in range(11)])
    steps = np.concatenate([[0], recall, [1]])
    envelope = np.maximum.accumulate(np.concatenate([[0], precision, [0]])[::-1])[::-1]
    where = np.flatnonzero(steps[1:] != steps[:-1])
    return 100 * ((steps[where + 1] - steps[where]) * envelope[where + 1]).sum()
