"""What a source of models does: build one, empty or with published weights, and say what comes with it."""

from __future__ import annotations

import abc
import difflib
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from camtools.errors import ModelError, WeightsError
from camtools.images.preprocess import Preprocess
from camtools.notebook import html_table


@dataclass(frozen=True)
class Built:
    """A model just built, and what its source knows of it.

    Attributes:
        model: The model, on the CPU.
        preprocess: A `Preprocess`, or a callable from a PIL image to a tensor; None where unknown.
        class_names: Names by class index; None where unknown.
    """

    model: nn.Module
    preprocess: Preprocess | Callable[..., Any] | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A classifier ready to be explained.

    Attributes:
        model: The classifier, in eval mode, on the CPU.
        preprocess: From an image to the model's input: a `Preprocess`, or the transform that a user's function
            returned; None where nothing is known of it.
        class_names: Names by class index, or None. Models of timm and torchvision with 1,000 classes have ImageNet's.
        spec: The name that it was loaded by.
        model_args: The keyword arguments that went with it.
    """

    model: nn.Module
    preprocess: Preprocess | Callable[..., Any] | None
    class_names: tuple[str, ...] | None
    spec: str
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def _told(self) -> dict[str, object]:
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        names = self.class_names
        classes = "no names" if names is None else f"{len(names)}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
        return {
            "model": type(self.model).__name__,
            "parameters": f"{millions:.2f} million",
            "classes": classes,
            "preprocess": self.preprocess,
        } | ({"model_args": dict(self.model_args)} if self.model_args else {})

    def __repr__(self) -> str:
        return f"LoadedModel({self.spec!r}, {', '.join(f'{key}: {value}' for key, value in self._told().items())})"

    def _repr_html_(self) -> str:
        return html_table(self._told().items(), caption=self.spec)


class Source(abc.ABC):
    """One model by name.

    Attributes:
        spec: The full name, for messages.
        args: Keyword arguments for its constructor.
        takes_num_classes: Whether it can be built for another number of classes.
        by_colon: Whether names are written LIBRARY:NAME, as the name may be a path; LIBRARY/NAME otherwise.
        file_args: The arguments that a weights file may name: such as shape the network, and open nothing.
    """

    takes_num_classes: bool = True
    by_colon: bool = False
    file_args: frozenset[str] = frozenset()

    def __init__(self, spec: str, args: dict[str, Any]) -> None:
        self.spec = spec
        self.args = args

    @staticmethod
    def known() -> list[str]:
        """Return the names of all models of this source; none where any name may do."""
        return []

    @abc.abstractmethod
    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights."""

    @abc.abstractmethod
    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with its published weights, downloaded into the library's own cache where they are not there yet.

        Raises:
            WeightsError: There are none, or they cannot be downloaded.
        """

    def for_checkpoint(self, num_classes: int | None, state: Mapping[str, Tensor], path: Path) -> Built:
        """Build it empty, in the form that a checkpoint calls for."""
        return self.empty(num_classes)

    def has_published(self, tag: str) -> bool:
        """Return whether published weights go by this name."""
        return False

    def convert(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor] | None:
        """Translate another edition's keys to the model's; None where there is nothing to translate."""
        return None

    def _check_published(self, classes: int, num_classes: int | None, url: str | None) -> None:
        """Refuse at once what cannot come to good.

        Args:
            classes: How many the published weights are for.
            num_classes: How many are wanted; None for as many.
            url: Where the weights are to be downloaded from; None where they are there already.

        Raises:
            WeightsError: They are for another number of classes, or the download cannot start.
        """
        if num_classes not in (None, classes):
            raise WeightsError(
                f"The published weights of {self.spec} are for {classes} classes; with num_classes={num_classes} "
                f"its classifier would stay random. {way_out(self.spec)}"
            )
        if url is not None and not reachable(url):
            raise WeightsError(
                f"The weights of {self.spec} cannot be downloaded: {url} is out of reach. {way_out(self.spec)}"
            )

    def _unavailable(self, error: Exception) -> WeightsError:
        """Word the error for a download that failed."""
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        return WeightsError(
            f"The weights of {self.spec} cannot be had: {type(error).__name__}: {reason}. {way_out(self.spec)}"
        )

    def _construct(self, build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        """Call a constructor; what it raises becomes a `ModelError`."""
        try:
            return build(*args, **kwargs)
        except Exception as error:
            raise ModelError(f"{self.spec} cannot be built: {type(error).__name__}: {error}") from error


def no_such_name(spec: str, name: str, known: Iterable[str], how: str) -> ModelError:
    """Word the error for an unknown name, with the closest ones."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    library = spec.partition("/")[0]
    hint = f"Did you mean {' or '.join(f'{library}/{c}' for c in close)}?" if close else f"List them with {how}."
    return ModelError(f"There is no model {spec}. {hint}")


def reachable(url: str) -> bool:
    """Return whether a host's name resolves, or a proxy will see to it; a download that cannot start is not tried.

    Args:
        url: The address to be fetched.
    """
    host = urllib.parse.urlsplit(url).hostname
    proxies = urllib.request.getproxies()
    if not host or "https" in proxies or "all" in proxies:
        return True
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def way_out(spec: str) -> str:
    """Say what to do without published weights."""
    return (
        f"Give a checkpoint of your own (weights=FILE, --weights FILE), or build {spec} with random weights "
        "(weights='random', --weights random)."
    )
