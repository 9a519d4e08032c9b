"""`python -m camtools` and the `camtools` script: the command line, with an end to it whenever it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130
_interrupts = 0


def main() -> None:
    """Run the command line. Ctrl-C ends it with exit code 130, SIGTERM with 143, neither with a traceback."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from camtools.cli import app

        app()
    except BaseException:
        if _interrupts:  # whatever came of it on its way here
            sys.exit(_INTERRUPTED)
        raise
    finally:
        signal.signal(signal.SIGINT, _leave)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, so that a command ends tidily; the second time, or during an import, leave at once.

    An import may turn the exception into another, or print it. Whatever is half-written is cleared by the next run.
    """
    global _interrupts
    _interrupts += 1
    if _interrupts > 1 or _imports(frame):
        _leave(number, frame)
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Return whether an import is under way."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave(number: int, frame: FrameType | None) -> None:
    """End without another word from Python."""
    with contextlib.suppress(OSError):
        os.write(2, b"Interrupted.\n")
    os._exit(_INTERRUPTED)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as after an error, so that nothing half-written is left."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
