"""Images on their way to the model: read, checked and preprocessed ahead of it, in threads."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from itertools import groupby, islice
from threading import Lock
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from camtools.errors import InputError
from camtools.images.find import find_images
from camtools.images.geometry import Geometry
from camtools.images.preprocess import Preprocess, Transform
from camtools.images.read import InputImage, Least, read_image

T = TypeVar("T")
R = TypeVar("R")
Failed = Callable[[int | None, Any, InputError], object]
"""What to do about an image that cannot be used: its number, the image and why."""
Errors = Literal["raise", "skip"] | Callable[[Any, InputError], object]
"""What becomes of images that cannot be used."""
READERS = 4  # threads
_ONE_READER = Lock()  # PIL images load their files when asked to, which two threads must not do at once


class Ready(NamedTuple):
    """One image that the model can take.

    Attributes:
        name: What messages call it.
        input_image: What came in.
        tensor: The network's input, (C, h, w).
        geometry: Where that lies in the image.
        target: What the caller wants explained in it; not looked at here.
    """

    name: str
    input_image: InputImage
    tensor: Tensor
    geometry: Geometry
    target: Any


class Batch(NamedTuple):
    """Images whose tensors have one shape.

    Attributes:
        images: B of them.
        tensor: Their tensors together, (B, C, h, w).
    """

    images: list[Ready]
    tensor: Tensor


def read_ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int = READERS, ahead: int = 16
) -> Generator[R | Exception, None, None]:
    """Yield what a function makes of every item, in order, worked out in threads before it is asked for.

    Closing the generator (`contextlib.closing`) cancels what has not begun and waits for what has.

    Args:
        function: Called in `workers` threads at once.
        items: Its arguments; drawn in the caller's thread.
        workers: Threads.
        ahead: How many items may be under way or wait to be asked for.

    Yields:
        The function's result; where it raised an exception, the exception. Last the exception that ended the items.
    """
    remaining = iter(items)
    failure: Exception | None = None
    futures: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                try:
                    while failure is None and len(futures) < ahead:
                        futures.append(pool.submit(function, next(remaining)))
                except Exception as error:  # StopIteration, or the iterator's own: after what came before it
                    failure = error
                if not futures:
                    if failure is not None and not isinstance(failure, StopIteration):
                        yield failure
                    return
                try:
                    result: R | Exception = futures.popleft().result()
                except Exception as error:
                    result = error
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def images_of(images: Any) -> Iterable[Any]:
    """Return the images of a stream, one after another.

    Args:
        images: An iterable of images, or of tuples that begin with one; a map-style data set of such; or a folder, a
            pattern, a list file, shards or a store's folder, see `find_images`.

    Raises:
        InputError: It cannot be gone through, or is one image.
    """
    if isinstance(images, str | os.PathLike):
        return find_images(images)
    if not isinstance(images, Iterable) and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        images = map(images.__getitem__, range(len(images)))
    check_iterable(images)
    return (item[0] if isinstance(item, tuple) and item else item for item in images)


def on_error(errors: Errors, lost: list[int] | None = None) -> Failed | None:
    """Return what is done about an image that cannot be used: None raises; `lost` gets its number."""
    if isinstance(errors, str) and errors == "raise":
        return None
    if not callable(errors) and (not isinstance(errors, str) or errors != "skip"):
        raise InputError(f"errors={errors!r}: expected 'raise', 'skip', or a callable of the image and the error")

    def failed(index: int | None, image: Any, error: InputError) -> None:
        if lost is not None and index is not None:
            lost.append(index)
        if callable(errors):
            errors(image, error)
        else:
            warnings.warn(f"left out: {error}", stacklevel=4)

    return failed


def check_iterable(images: Any) -> None:
    """Raise where a stream is given something that cannot be gone through, or that is one image.

    Raises:
        InputError: It is a number, a path or an image.
    """
    if isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable):
        raise InputError(
            f"got {type(images).__name__}: expected an iterable of images, such as a list or a generator. Pass "
            "[image], or call the object itself for a single image"
        )


def read_batches(
    images: Iterable[tuple[int | None, Any]],
    targets: Iterable[Any],
    transform: Transform,
    batch_size: int,
    least: Least | None = None,
    workers: int = READERS,
    failed: Failed | None = None,
) -> Iterator[Batch]:
    """Yield images batch by batch; those of the next batch are read meanwhile.

    Args:
        images: Images as `read_image` takes them, with their number; None for a single one.
        targets: One per image, passed through.
        transform: Makes them ready for the model.
        batch_size: Images per batch; a batch ends early where the tensors' shape changes.
        least: See `read_image`.
        workers: Threads that read.
        failed: Called with an image's number, the image and the error where it cannot be used; it is then left out.
            None raises.

    Raises:
        InputError: An image cannot be used; batches of those before it have been yielded by then.
    """
    paired = zip(images, targets, strict=False)
    drawn: deque[Any] = deque()  # the images under way, for `failed`

    def noted() -> Iterator[tuple[tuple[int | None, Any], Any]]:
        for pair in paired:
            drawn.append(pair[0])
            yield pair

    with closing(read_ahead(partial(_prepare, transform, least), noted(), workers, batch_size + 1)) as results:
        while chunk := list(islice(results, batch_size)):
            sound: list[Ready] = []
            error: Exception | None = None
            for result in chunk:
                index, image = drawn.popleft() if drawn else (None, None)
                if isinstance(result, InputError) and failed is not None:
                    failed(index, image, result)
                elif isinstance(result, Exception):
                    error = result
                    break
                else:
                    sound.append(result)
            yield from batches_of(sound)
            if error is not None:
                raise error


def batches_of(images: Sequence[Ready]) -> Iterator[Batch]:
    """Yield images as batches, a new one wherever the tensors' shape changes."""
    for _, same in groupby(images, key=lambda ready: ready.tensor.shape):
        batch = list(same)
        home = batch[0].tensor.device  # ready tensors may come from anywhere
        yield Batch(batch, torch.stack([ready.tensor.to(home) for ready in batch]))


def is_ready_batch(images: Any, transform: Transform) -> bool:
    """Return whether `images` is one sound tensor (B, C, H, W), ready for the model as it is."""
    channels = transform.channels if isinstance(transform, Preprocess) else None
    return (
        isinstance(images, Tensor)
        and images.dim() == 4
        and images.is_floating_point()
        and images.numel() > 0
        and channels in (None, images.shape[1])
        and bool(torch.isfinite(images).all())
    )


def ready_batches(images: Tensor, targets: list[Any], batch_size: int, transform: Transform) -> Iterator[Batch]:
    """Yield slices of a ready batch tensor, without a copy or a look at each image.

    Args:
        images: (B, C, H, W), as `is_ready_batch` wants it.
        targets: One per image, passed through.
        batch_size: Images per slice.
        transform: The model's preprocessing, which they have gone through.

    Raises:
        InputError: The values are 8-bit levels.
    """
    if isinstance(transform, Preprocess):
        transform.check_range(images, "the batch")
    size = (images.shape[2], images.shape[3])
    geometry = Geometry.identity(size)
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        batch = [
            Ready(f"image {start + i}", InputImage(None, tensor, None, size), tensor, geometry, targets[start + i])
            for i, tensor in enumerate(part.unbind())
        ]
        yield Batch(batch, part)


def _prepare(transform: Transform, least: Least | None, pair: tuple[tuple[int | None, Any], Any]) -> Ready:
    (index, image), target = pair
    return prepare(transform, image, target, index, least)


def prepare(
    transform: Transform, image: Any, target: Any = None, index: int | None = None, least: Least | None = None
) -> Ready:
    """Read an image and turn it into what the model takes.

    Args:
        transform: Does the latter.
        image: As `read_image` takes it.
        target: What the caller wants explained in it.
        index: The element of the caller's batch, for the messages.
        least: See `read_image`.

    Raises:
        InputError: The image cannot be used.
    """
    channels = transform.channels if isinstance(transform, Preprocess) else None
    with _ONE_READER if isinstance(image, Image.Image) else nullcontext():
        input_image = read_image(image, channels=channels, index=index, least=least)
    tensor, geometry = transform(input_image)
    name = input_image.source or ("the image" if index is None else f"image {index}")
    return Ready(name, input_image, tensor, geometry, target)
