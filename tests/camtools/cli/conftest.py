"""What the tests of several commands share."""

import pytest

from camtools.cli.run import Run


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that makes runs stop as by Ctrl-C after so many batches."""

    def after(batches):
        chunk, calls = Run._each, []

        def interrupted(self, *args):
            calls.append(1)
            if len(calls) > batches:
                raise KeyboardInterrupt
            return chunk(self, *args)

        monkeypatch.setattr(Run, "_each", interrupted)

    return after
