"""The fuzz tests: marked `fuzz`, of few and always the same examples unless the profile `long` is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of them, so that `pytest -m fuzz` runs these and no others."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("fuzz")


@pytest.fixture(scope="session", autouse=True)
def _few_pixels() -> Iterator[None]:
    """Have fewer pixels allowed in an image: a damaged header that asks for many costs time, not sense."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 400_000
    yield
    Image.MAX_IMAGE_PIXELS = before
