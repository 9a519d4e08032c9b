"""Pixels of several images at once: in threads, with the results of one after another."""

import threading

import numpy as np
import pytest
import torch

import camtools
from camtools.pipeline.pixels import in_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_several_threads(two_threads):
    both, seen = threading.Barrier(2, timeout=30), set()

    def square(number):
        both.wait()  # passed by two threads at once only
        seen.add(threading.get_ident())
        return number**2

    assert list(in_threads(square, range(6), torch.device("cpu"))) == [0, 1, 4, 9, 16, 25]
    assert len(seen) == 2 and threading.get_ident() not in seen


def test_one_item_and_another_device_stay_in_the_callers_thread(two_threads):
    for items, device in (([7], "cpu"), ([7, 8], "meta")):
        found = list(in_threads(lambda _: threading.get_ident(), items, torch.device(device)))
        assert set(found) == {threading.get_ident()}


def test_an_error_is_the_callers(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 / number, [1, 0, 2], torch.device("cpu")))


@pytest.mark.parametrize("pipeline", ["fast", "rcam", "adaptive"])
def test_explanations_of_many_sizes_are_those_of_one_thread(make_tiny, two_threads, pipeline):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (40 + 7 * n, 90 - 5 * n, 3), dtype=np.uint8) for n in range(9)]
    explainer = camtools.Explainer(make_tiny(5), pipeline, transform=camtools.Preprocess(input_size=(32, 32)))
    threaded = explainer(images, top_k=2)
    torch.set_num_threads(1)
    for one, other in zip(threaded, explainer(images, top_k=2), strict=True):
        for here, there in zip(one, other, strict=True):
            assert (here.label, here.threshold) == (there.label, there.threshold)
            assert torch.equal(here.boxes, there.boxes) and torch.equal(here.box_scores, there.box_scores)
            assert torch.equal(here.mask, there.mask) and torch.equal(here.mask, here.map > here.threshold)
