"""`read_ahead`: in order, a few ahead, exceptions in their place, nothing left running."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import islice

from camtools.images.batches import read_ahead


def test_results_come_in_order():
    assert list(read_ahead(lambda n: n * n, range(50), workers=3, ahead=7)) == [n * n for n in range(50)]
    assert list(read_ahead(str, [])) == []


def test_an_exception_stands_in_its_place():
    first, failure, last = read_ahead(lambda n: 1 // n, [1, 0, -1])
    assert (first, last) == (1, -1)
    assert isinstance(failure, ZeroDivisionError)


def test_no_more_items_are_drawn_than_asked_for():
    drawn = []
    with closing(read_ahead(str, (drawn.append(n) or n for n in range(100)), workers=2, ahead=5)) as results:
        assert list(islice(results, 3)) == ["0", "1", "2"]
        assert len(drawn) == 7  # the third was taken from five under way


def test_closing_cancels_what_has_not_begun():
    begun, go = [], threading.Event()

    def slow(n):
        begun.append(n)
        if n:
            go.wait(10)
        return n

    results = read_ahead(slow, range(100), workers=2, ahead=50)
    assert next(results) == 0
    go.set()
    results.close()
    assert len(begun) < 100
    assert threading.active_count() < 20


def test_an_exception_of_the_items_ends_it():
    def items():
        yield 1
        raise OSError("no more")

    first, last = read_ahead(str, items())
    assert first == "1" and isinstance(last, OSError) and str(last) == "no more"
