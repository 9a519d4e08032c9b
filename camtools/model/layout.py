"""Feature layouts: what the axes of a feature tensor mean, and the one place where they become NCHW."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor

from camtools.errors import ModelError


class Layout(StrEnum):
    """Order of the axes: N images, C channels, H rows, W columns, L positions in row-major order."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NLC = "NLC"


def to_nchw(x: Tensor, layout: Layout, input_size: tuple[int, int], prefix_tokens: int = 0) -> Tensor:
    """Bring features into (B, C, h, w), leaving out class and register tokens.

    Args:
        x: Features in the given layout.
        layout: What the axes of `x` mean.
        input_size: (height, width) of the network's input in pixels; tells the grid of a token sequence.
        prefix_tokens: How many tokens come before the positions (class token, registers).

    Returns:
        A view of `x` where strides allow, (B, C, h, w).

    Raises:
        ModelError: The number of tokens fits no grid of the input's shape.
    """
    if layout is Layout.NCHW:
        return x
    if layout is Layout.NHWC:
        return x.permute(0, 3, 1, 2)
    x = x.transpose(1, 2)
    tokens = x.shape[2] - prefix_tokens
    grid = token_grid(tokens, input_size)
    if grid is None:
        raise ModelError(
            f"{tokens} tokens (after {prefix_tokens} prefix tokens) fit no grid over an input of "
            f"{input_size[0]} x {input_size[1]} pixels; give the model images of the size it was built for"
        )
    return x[:, :, prefix_tokens:].unflatten(2, grid)


def token_grid(tokens: int, input_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the (rows, columns) that `tokens` positions form over an input, or None.

    Rows and columns must follow from one stride along both axes; the last patch may be partial.

    Args:
        tokens: Number of positions.
        input_size: (height, width) of the network's input in pixels.
    """
    return next((grid for grid in _grids(input_size) if grid[0] * grid[1] == tokens), None)


def is_grid(rows: int, columns: int, input_size: tuple[int, int]) -> bool:
    """Tell whether `rows` x `columns` cells can be a downsampled image of `input_size` (height, width).

    Convolutions without padding lose a cell or two along each axis, so the strides of both axes may differ by that.
    """
    height, width = input_size
    if not (rows <= height and columns <= width and rows * columns >= 4):
        return False  # fewer than four cells tell nothing about where
    # Cells per axis are size / stride, give or take 2; both axes share the stride.
    low = max((rows - 2) / height, (columns - 2) / width)
    high = min((rows + 2) / height, (columns + 2) / width)
    return low < high and (rows == columns or height != width)


def _grids(input_size: tuple[int, int]) -> list[tuple[int, int]]:
    height, width = input_size
    exact = [(height // s, width // s) for s in range(1, min(input_size) + 1) if height % s == 0 and width % s == 0]
    powers = [2**i for i in range(1, 8)]
    ceiled = [(-(-height // s), -(-width // s)) for s in powers]
    floored = [(height // s, width // s) for s in range(4, min(input_size) + 1)]
    return [*exact, *ceiled, *floored]
