"""Batches: every image once, or S of each of so many classes."""

from collections import Counter
from itertools import chain

import pytest

from camtools.errors import InputError
from camtools.training.data import balanced_batches, shuffled_batches


def test_shuffled_batches_have_every_image_once():
    batches = shuffled_batches(10, 4, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(chain.from_iterable(batches)) == list(range(10))
    assert batches == shuffled_batches(10, 4, seed=1, epoch=0)
    assert batches != shuffled_batches(10, 4, seed=1, epoch=1) != shuffled_batches(10, 4, seed=2, epoch=1)


def test_a_single_image_at_the_end_is_left_out():
    assert [len(batch) for batch in shuffled_batches(9, 4, 0, 0)] == [4, 4]
    assert shuffled_batches(1, 4, 0, 0) == [[0]]


def test_twice_the_batch_is_two_batches():
    double, single = shuffled_batches(16, 8, 5, 2), shuffled_batches(16, 4, 5, 2)
    assert [single[0] + single[1], single[2] + single[3]] == double


def test_balanced_batches_have_s_of_each_class():
    labels = [0] * 6 + [1] * 4 + [2] * 5 + [3] * 2
    batches = balanced_batches(labels, classes=2, each=2, seed=0, epoch=0)
    for batch in batches:
        groups = [[labels[image] for image in batch[i : i + 2]] for i in (0, 2)]
        assert all(len(set(group)) == 1 for group in groups) and groups[0] != groups[1]
    used = Counter(chain.from_iterable(batches))
    assert max(used.values()) == 1
    # 3 + 2 + 2 + 1 groups of two make four batches of two classes: none is left over, and only class 2 is odd.
    assert len(batches) == 4
    assert Counter(labels[image] for image in used) == {0: 6, 1: 4, 2: 4, 3: 2}


def test_a_class_with_fewer_than_s_repeats_its_images():
    (batch,) = balanced_batches([0, 0, 1, 1, 1, 1, 1], classes=2, each=5, seed=0, epoch=0)
    counts = Counter(batch)
    assert sorted(counts[image] for image in (0, 1)) == [2, 3]
    assert [counts[image] for image in range(2, 7)] == [1] * 5


def test_every_image_has_its_turn_over_the_epochs():
    labels = [0] * 7 + [1] * 7
    seen = {p for epoch in range(10) for batch in balanced_batches(labels, 2, 5, 0, epoch) for p in batch}
    assert seen == set(range(14))


def test_balanced_batches_depend_on_seed_and_epoch_only():
    labels = [i % 4 for i in range(40)]
    first = balanced_batches(labels, 3, 2, 1, 1)
    assert first == balanced_batches(labels, 3, 2, 1, 1)
    assert first != balanced_batches(labels, 3, 2, 1, 2) and first != balanced_batches(labels, 3, 2, 2, 1)


def test_too_few_classes_are_refused():
    with pytest.raises(InputError, match="a batch has 3 classes, but the training images are of 2"):
        balanced_batches([0, 0, 1, 1], classes=3, each=2, seed=0, epoch=0)
