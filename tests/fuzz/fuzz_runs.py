"""Commands in processes that may be killed at any change of a file; forked from one that has imported all they need."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KILLED = -signal.SIGKILL
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
_PRELOADED = (
    *(
        "camtools.cli",
        "camtools.explainer",
        "camtools.evaluation.report",
        "camtools.training",
        "camtools_recipes.cream",
    ),
    *("accelerate", "torch.utils.tensorboard", "pyarrow.parquet", "timm", "torchvision", "rich.table"),
    *("numba", "pandas", "matplotlib.backends.backend_agg", "camtools.loading"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; `KILLED` if it was.
        stdout: What it printed.
        stderr: Likewise.
        changes: How many changes of files there were; 0 if it was killed.
    """

    code: int
    stdout: str
    stderr: str
    changes: int


def command(argv: list[str], folder: Path, kill_at: int = 0) -> Ended:
    """Run a command line in a process of its own.

    Args:
        argv: The command and its arguments.
        folder: Where it runs, and below which changes of files count.
        kill_at: The change before which it is killed; 0 lets it come to its end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    said = [folder / f".{name}" for name in ("stdout", "stderr", "changes")]
    for path in said:
        path.write_text("")
    process = context.Process(target=_child, args=(argv, folder, kill_at))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{argv} does not end: {said[1].read_text()}")
    stdout, stderr, changes = (path.read_text() for path in said)
    for path in said:
        path.unlink()
    return Ended(int(process.exitcode or 0), stdout, stderr, int(changes or 0))


def _child(argv: list[str], folder: Path, kill_at: int) -> None:
    os.chdir(folder)
    for number, name in (1, ".stdout"), (2, ".stderr"):
        os.dup2(os.open(name, os.O_WRONLY), number)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(200, file=2)  # says where a process is that does not end
    count = 0
    ours, said = str(folder) + os.sep, str(folder / ".changes")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if not (writes or event in _CHANGES) or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = str(Path(os.fsdecode(args[0])).absolute())
        if path.startswith(ours) and path != said:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    from camtools.__main__ import main  # here, since the parent needs none of it

    sys.addaudithook(watch)
    sys.argv = ["camtools", *argv]
    try:
        main()
    finally:
        Path(said).write_text(str(count))
