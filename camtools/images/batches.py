"""Images on their way to the model: read, checked and preprocessed ahead of it, in threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby, islice
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from camtools.images.geometry import Geometry
from camtools.images.preprocess import Preprocess, Transform
from camtools.images.read import InputImage, read_image

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


def read_batches(
    images: Iterable[tuple[int | None, Any]], targets: Iterable[Any], transform: Transform, batch_size: int
) -> Iterator[Batch]:
    """Yield images batch by batch, read `2 * batch_size` ahead.

    Args:
        images: Images as `read_image` takes them, with their number; None for a single one.
        targets: One per image, passed through.
        transform: Makes them ready for the model.
        batch_size: Images per batch; a batch ends early where the tensors' shape changes.

    Raises:
        InputError: An image cannot be used; batches of those before it have been yielded by then.
    """
    paired = zip(images, targets, strict=False)
    ahead: list[Future[Ready]] = []
    failure: BaseException | None = None
    with ThreadPoolExecutor(READERS) as pool:
        while failure is None:
            more = islice(paired, 2 * batch_size - len(ahead))
            ahead += [pool.submit(_prepare, *image, target, transform) for image, target in more]
            if not ahead:
                return
            ready = []
            for future in ahead[:batch_size]:
                failure = future.exception()
                if failure is not None:
                    break
                ready.append(future.result())
            ahead = ahead[batch_size:]
            for _, same in groupby(ready, key=lambda one: one.tensor.shape):
                batch = list(same)
                home = batch[0].tensor.device  # ready tensors may come from anywhere
                yield Batch(batch, torch.stack([ready.tensor.to(home) for ready in batch]))
    raise failure


def is_ready_batch(images: Any, transform: Transform) -> bool:
    """Tell whether `images` is one sound tensor (B, C, H, W), ready for the model as it is."""
    channels = transform.channels if isinstance(transform, Preprocess) else None
    return (
        isinstance(images, Tensor)
        and images.dim() == 4
        and images.is_floating_point()
        and images.numel() > 0
        and channels in (None, images.shape[1])
        and bool(torch.isfinite(images).all())
    )


def ready_batches(images: Tensor, targets: list[Any], batch_size: int) -> Iterator[Batch]:
    """Yield slices of a ready batch tensor, without a copy or a look at each image.

    Args:
        images: (B, C, H, W), as `is_ready_batch` wants it.
        targets: One per image, passed through.
        batch_size: Images per slice.
    """
    size = (images.shape[2], images.shape[3])
    geometry = Geometry.identity(size)
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        batch = [
            Ready(f"image {start + i}", InputImage(None, tensor, None, size), tensor, geometry, targets[start + i])
            for i, tensor in enumerate(part.unbind())
        ]
        yield Batch(batch, part)


def _prepare(index: int | None, image: Any, target: Any, transform: Transform) -> Ready:
    """Read an image and turn it into what the model takes."""
    channels = transform.channels if isinstance(transform, Preprocess) else None
    with _ONE_READER if isinstance(image, Image.Image) else nullcontext():
        input_image = read_image(image, channels=channels, index=index)
    tensor, geometry = transform(input_image)
    name = input_image.source or ("the image" if index is None else f"image {index}")
    return Ready(name, input_image, tensor, geometry, target)
