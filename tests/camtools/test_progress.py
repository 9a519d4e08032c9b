"""The bar shows label, count, rate and text on a terminal, and nothing elsewhere."""

import io
from contextlib import contextmanager

import pytest
from PIL import Image
from rich.console import Console

import camtools
from camtools import progress
from camtools.datasets.scenes import scene_classifier


@pytest.mark.parametrize(
    ("terminal", "shown", "total"), [(True, True, 4), (False, True, 4), (True, False, 4), (True, True, 0)]
)
def test_what_is_seen(monkeypatch, terminal, shown, total):
    stderr = io.StringIO()
    console = Console(file=stderr, force_terminal=terminal, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.progress_bar(total, "Epoch 1/2", shown, unit="scenes") as advance:
        advance()
        advance(2, "loss 0.5")
        advance(text="")
    text = stderr.getvalue()
    assert bool(text) == (terminal and shown and total > 0)
    if text:
        assert "Epoch 1/2, loss 0.5" in text and "4/4" in text and "scenes/s" in text


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook_it_needs_widgets(monkeypatch, widgets):
    console = Console(file=io.StringIO(), force_jupyter=True)
    made = {}

    class Spy(progress.Progress):
        def __init__(self, *columns, disable, **options):
            made["hidden"] = disable
            super().__init__(*columns, disable=True, **options)

    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(progress, "Progress", Spy)
    with progress.progress_bar(4, "Images"):
        pass
    assert made["hidden"] != widgets


@pytest.mark.parametrize(("kind", "word"), [("explain", "Explaining"), ("segment", "Segmenting")])
def test_calls_and_streams_count_their_images(monkeypatch, kind, word):
    said = []

    @contextmanager
    def bar(total, label, shown=True):
        said.append([label, total, shown, 0])

        def advance(count):
            said[-1][-1] += count

        yield advance

    monkeypatch.setattr(f"camtools.{kind}er.progress_bar", bar)
    call, make = getattr(camtools, kind), getattr(camtools, f"{kind.title()}er")
    images, model = [Image.new("RGB", (32, 32))] * 3, scene_classifier()
    call(model, images)
    call(model, images, batch_size=2, progress=True)
    worker = make(model, batch_size=2)
    list(worker.stream(images, progress=True))
    list(worker.stream(iter(images), progress=True))
    list(worker.stream(images))
    assert said == [
        ["Images", 3, False, 3],
        ["Images", 3, True, 3],
        [word, 3, True, 3],
        [word, 0, True, 3],
        [word, 0, True, 3],
    ]
    for made in (lambda: make(model, progress="yes"), lambda: list(worker.stream(images, progress=1))):
        with pytest.raises(camtools.InputError, match=r"progress.*expected True or False"):
            made()
