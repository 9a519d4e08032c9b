"""Which pictures make a batch: all of them shuffled, or so many of each of so many classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camtools.errors import InputError

_SHUFFLE, _BALANCED = 1, 2  # so that streams of random numbers differ


def shuffled_batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every picture once, in random order.

    A last batch of one picture is left out where there are others: batch normalisation cannot learn from it.

    Args:
        count: Pictures.
        size: Pictures in a batch.
        seed: Any other gives another order.
        epoch: Likewise.
    """
    order = np.random.default_rng([seed, epoch, _SHUFFLE]).permutation(count).tolist()
    found = [order[i : i + size] for i in range(0, count, size)]
    return found[:-1] if len(found) > 1 and len(found[-1]) == 1 else found


def balanced_batches(labels: Sequence[int], classes: int, each: int, seed: int, epoch: int) -> list[list[int]]:
    """Return batches of `classes` classes with `each` pictures of each, a class's pictures one after another.

    A class with n pictures gives n // each groups of different pictures, drawn anew every epoch; one with fewer than
    `each` gives a single group in which pictures repeat. Groups are put together such that no class is twice in a
    batch; groups for which there are not enough other classes left wait for another epoch's order.

    Args:
        labels: The class of every picture.
        classes: Classes in a batch.
        each: Pictures of each of them, S in MinMaxCAM (Wang et al., BMVC 2021).
        seed: Any other gives other batches.
        epoch: Likewise.

    Raises:
        InputError: There are fewer classes with pictures.
    """
    random = np.random.default_rng([seed, epoch, _BALANCED])
    values = np.asarray(labels)
    groups: dict[int, list[list[int]]] = {}
    for label in np.unique(values).tolist():
        own = random.permutation(np.flatnonzero(values == label)).tolist()
        if len(own) < each:
            own = (own * each)[:each]
        groups[label] = [own[i : i + each] for i in range(0, len(own) - each + 1, each)]
    if len(groups) < classes:
        raise InputError(
            f"a batch has {classes} classes, but the training pictures are of {len(groups)}: expected at least as "
            "many. Lower classes_per_batch"
        )
    found: list[list[int]] = []
    while len(left := [label for label, own in groups.items() if own]) >= classes:
        # Those with most groups left come first, ties at random: so the fewest groups remain at the end.
        ties = random.permutation(len(left))
        order = sorted(range(len(left)), key=lambda i: (-len(groups[left[i]]), ties[i]))
        found.append([picture for i in order[:classes] for picture in groups[left[i]].pop()])
    return [found[i] for i in random.permutation(len(found)).tolist()]
