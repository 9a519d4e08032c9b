"""The arithmetic of the benchmarks: interleaved rounds, ratios within a round, their median, and the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Sense = Literal["at most", "at least"]


@dataclass(frozen=True)
class Ratio:
    """One ratio, measured once a round.

    Attributes:
        name: What is divided by what.
        values: One ratio a round, at least one.
        aim: What the median is held against; None where nothing is aimed at.
        sense: Whether the aim is an upper or a lower limit.
    """

    name: str
    values: tuple[float, ...]
    aim: float | None = None
    sense: Sense = "at most"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the aim; None without one."""
        if self.aim is None:
            return None
        return self.median <= self.aim if self.sense == "at most" else self.median >= self.aim

    def row(self) -> tuple[str, ...]:
        aim = "" if self.aim is None else f"{'<=' if self.sense == 'at most' else '>='} {self.aim:.2f}"
        met = {None: "", True: "yes", False: "NO"}[self.met]
        low, high = min(self.values), max(self.values)
        return (self.name, f"{self.median:.3f}", f"{low:.3f} to {high:.3f}", aim, met)


def ratio(
    name: str, above: Sequence[float], below: Sequence[float], aim: float | None = None, sense: Sense = "at most"
) -> Ratio:
    """Divide round by round.

    Raises:
        ValueError: The numbers of rounds differ, or there are none.
    """
    if len(above) != len(below) or not above:
        raise ValueError(f"{name}: {len(above)} and {len(below)} rounds; expected as many of both, at least one")
    return Ratio(name, tuple(a / b for a, b in zip(above, below, strict=True)), aim, sense)


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    wait: Callable[[], object] = lambda: None,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every contender once a round, in the same order (A B C A B C ...), so that a slow spell hits them alike.

    Args:
        contenders: What to call, by name.
        rounds: How many rounds.
        wait: Called before each reading of the clock: what makes a device finish.
        between: Called between contenders, while the clock does not run: what one leaves behind and the next must not
            find.
        clock: Seconds since some moment; of the wall, or of the processor.

    Returns:
        Seconds a call, one a round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            between()
            wait()
            start = clock()
            result = call()  # lives until the clock has been read: freeing it is not timed
            wait()
            seconds[name].append(clock() - start)
            del result
    return seconds


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table whose columns line up in plain text too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)
