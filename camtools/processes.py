"""Several processes of one run, as `torchrun` and `accelerate launch` start them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")
_PATIENCE = timedelta(days=7)  # one process may have much less to do than another


@dataclass(frozen=True)
class Team:
    """This process and the others.

    Attributes:
        rank: Its number, from 0; process 0 writes what all share.
        size: How many there are.
        local: Its number on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of so many batches are this process's: every `size`-th."""
        return range(self.rank, count, self.size)

    def part(self, items: Sequence[Item], batch_size: int) -> list[Item]:
        """Return this process's part of a list, in batches that are next to each other."""
        return [item for number, item in enumerate(items) if number // batch_size % self.size == self.rank]

    def device(self, name: Any) -> Any:
        """Return this process's own device where a name means any of several GPUs."""
        wanted = "cuda" if name == "auto" and torch.cuda.is_available() else name
        return f"cuda:{self.local % torch.cuda.device_count()}" if self.size > 1 and str(wanted) == "cuda" else name

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in all of them, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


def team() -> Team:
    """Join the other processes, if there are any, through gloo, whatever else they are joined by.

    What has been joined stays so until the process ends: a second evaluation in it goes on with the same.
    """
    if not dist.is_available():
        return Team()
    if not dist.is_initialized() and several():
        dist.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Team()
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Team(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")), group)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is the one that prints."""
    return not several() or int(os.environ.get("RANK", "0")) == 0
