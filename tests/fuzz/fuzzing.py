"""What the fuzz tests share: how many examples, the property that all of them check, values of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from camtools.checkpoints import weights_hash
from camtools.errors import CamtoolsError


def examples(share: float = 1) -> settings:
    """Return settings with a share of the profile's examples: less than 1 for tests that take longer."""
    return settings(max_examples=max(2, round(settings().max_examples * share)))


def result_or_refusal(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what a function gives, or the error of camtools that it raises; whatever else it raises escapes."""
    try:
        return function(*args, **options)
    except CamtoolsError as error:
        assert len(str(error)) > 20, f"an error without words: {error!r}"
        return error


def refused(outcome: Any) -> bool:
    """Whether an outcome is an error of camtools."""
    return isinstance(outcome, CamtoolsError)


def _condition(model: nn.Module) -> tuple[Any, ...]:
    modules = [
        (m.training, *map(len, (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks))) for m in model.modules()
    ]
    return (
        weights_hash(model),
        modules,
        [(p.requires_grad, p.grad) for p in model.parameters()],
        torch.is_grad_enabled(),
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that a model comes out as it went in: weights, buffers, modes, hooks and gradients."""
    before = _condition(model)
    yield
    assert _condition(model) == before


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, by their path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 1e-9, 1e300, math.nan, math.inf, -math.inf, 2**63, -(2**63), 10**30]),
    st.floats(width=32),
    st.booleans(),
)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.bool),
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 7, 32]), max_size=5).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> torch.Tensor:
    """Draw a tensor of any type and layout, with ordinary or odd values."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    values = torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).uniform(0, 1, shape))
    odd = draw(st.sampled_from([None, None, None, math.nan, math.inf, -1.0, 200.0]))
    if odd is not None and values.numel():
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = odd
    scale = 1 if dtype.is_floating_point or dtype.is_complex or odd in (math.nan, math.inf) else 255
    tensor = (values.nan_to_num() * scale if scale == 255 else values).to(dtype)
    match draw(st.sampled_from(["dense"] * 8 + ["turned", "expanded", "grad", "sparse", "meta", "nested"])):
        case "turned" if tensor.ndim > 1:
            return tensor.transpose(-1, -2)
        case "expanded" if tensor.ndim:
            return tensor[:1].expand(shape) if shape[0] else tensor
        case "grad" if dtype.is_floating_point and tensor.element_size() > 1:
            return tensor.requires_grad_()
        case "sparse" if dtype in (torch.float32, torch.int64) and tensor.ndim:
            return tensor.to_sparse()
        case "meta":
            return tensor.to("meta")
        case "nested" if dtype is torch.float32 and tensor.ndim > 1 and shape[0]:
            return torch.nested.nested_tensor(list(tensor))
    return tensor


@st.composite
def arrays(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> np.ndarray[Any, Any]:
    """Draw an array of any type."""
    shape = draw(shapes)
    dtype = draw(
        st.sampled_from(
            [
                "u1",
                "u1",
                "f4",
                "f4",
                "f8",
                "f2",
                "u2",
                ">u2",
                "i2",
                "i4",
                "i8",
                "u4",
                "u8",
                "?",
                "c8",
                "O",
                "U3",
                "S2",
                ">f4",
                "f16",
            ]
        )
    )
    values = np.random.default_rng(draw(st.integers(0, 99))).uniform(0, 1, shape)
    odd = draw(st.sampled_from([None, None, None, math.nan, math.inf, -0.5, 1.0005, 200.0]))
    if odd is not None and values.size and dtype in ("f4", "f8", "f2", ">f4", "f16"):
        values.flat[draw(st.integers(0, values.size - 1))] = odd
    array = (np.floor(values * 255) if "u" in dtype or "i" in dtype else values).astype(dtype)
    return array.swapaxes(0, -1) if array.ndim > 1 and draw(st.integers(0, 5)) == 0 else array


ANYTHING = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.binary(max_size=8), tensors(), arrays()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2) | st.tuples(inner)
    ),
    max_leaves=4,
)
"""Values of any kind."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file's content with some of it cut off, overwritten, turned, doubled or taken out."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.booleans())  # headers are near the beginning
        at = draw(st.integers(0, max(0, min(len(data), 100 if near else len(data)) - 1)))
        count = draw(st.sampled_from([1, 1, 2, 4, 8, 60]))
        match draw(st.sampled_from(["flip", "flip", "bytes", "bytes", "extreme", "cut", "double", "take"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                new = draw(st.binary(min_size=1, max_size=count))
                data[at : at + len(new)] = new
            case "extreme":
                new = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f\xff", b"\xff\xff\xff\x7f", b"\x80"])) * count
                data[at : at + len(new)] = new
            case "cut":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + count]
            case "take":
                del data[at : at + count]
    return bytes(data)
