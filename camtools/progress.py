"""The progress bar of an evaluation, with images per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, words: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, where that is a terminal.

    Args:
        total: Images to do.
        words: What is being done.
        shown: Whether to show it at all.

    Yields:
        What is to be told how many more images are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Speed(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} images/s" if speed else "- images/s")

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), Remaining())
    hidden = not shown or not console.is_terminal or total == 0
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(words, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def training_bar(total: int, words: str, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on stderr, where that is a terminal.

    Args:
        total: Images of the epoch.
        words: Which epoch it is.
        shown: Whether to show it at all.

    Yields:
        What is to be told how many more images are done, and the loss in words ("" leaves it).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Speed(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} images/s" if speed else "- images/s")

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), Remaining())
    with Progress(*columns, console=console, disable=not shown or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(words, total=total)

        def tick(count: int, loss: str) -> None:
            bar.update(task, advance=count, description=f"{words}, loss {loss}" if loss else None)

        yield tick
