"""The bar shows label, count, rate and text on a terminal, and nothing elsewhere."""

import io

import pytest
from rich.console import Console

from camtools import progress


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
