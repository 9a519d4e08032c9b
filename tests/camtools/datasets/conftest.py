"""What the tests of the data sets draw their folders with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Writes a grey image of (width, height), or an array as a mask; "P" for one with a palette."""

    def write(path: Path, content: tuple[int, int] | np.ndarray, mode: str = "L") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("RGB", content, (90, 120, 150)).save(path)
        else:
            image = Image.fromarray(content.astype(np.uint8))
            if mode == "P":
                image.putpalette([255 - index // 3 for index in range(768)])  # the values are not their grey levels
            image.convert(mode).save(path) if mode == "1" else image.save(path)
        return path

    return write


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes lines of text."""

    def write_lines(path: Path, *lines: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_lines
