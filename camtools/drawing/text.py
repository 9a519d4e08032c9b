"""Text in images: the font, and lines that keep within a width."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
FONT = _FONTS / "DejaVuSans.ttf"  # Latin, Greek, Cyrillic and more
BOLD = _FONTS / "DejaVuSans-Bold.ttf"
_BREAK = re.compile(r"(?<=[(,/_-])(?=.)|(?<=[a-z])(?=[A-Z])")  # AdaptiveThreshold(select='first')


@lru_cache(maxsize=64)
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans.

    Args:
        size: In pixels.
        bold: For titles.
    """
    return ImageFont.truetype(BOLD if bold else FONT, size)


def line_height(face: ImageFont.FreeTypeFont) -> int:
    """Return the distance from one line to the next, pixels."""
    ascent, descent = face.getmetrics()
    return ascent + descent + 1


def cut(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text, or as much of its beginning as fits together with an ellipsis; empty where nothing does."""
    if fits(text):
        return text
    too_long = bisect_left(range(len(text)), True, lo=1, key=lambda length: not fits(text[:length].rstrip() + "…"))
    shown = text[: too_long - 1].rstrip() + "…"
    return shown if fits(shown) else ""


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """Break a text into lines, between words where possible.

    Args:
        text: Any; its own line breaks are kept.
        face: What it is written in.
        width: No line becomes wider, pixels.
        lines: At most this many; what is left over is cut off with an ellipsis.
    """

    def fits(words: str) -> bool:
        return face.getlength(words) <= width

    shown: list[str] = []
    for paragraph in text.splitlines():
        words = paragraph.split()
        while words:
            count = next((n for n in range(len(words), 0, -1) if fits(" ".join(words[:n]))), 0)
            if count:
                shown.append(" ".join(words[:count]))
                words = words[count:]
            else:  # a word that is wider than the line is broken between its parts, or else where the line ends
                length = next((n for n in range(len(words[0]), 0, -1) if fits(words[0][:n])), 1)
                length = max((m.start() for m in _BREAK.finditer(words[0]) if m.start() <= length), default=length)
                shown.append(words[0][:length])
                words[0] = words[0][length:]
                words = words if words[0] else words[1:]
    if len(shown) <= lines:
        return shown
    last = cut(f"{shown[lines - 1]}…", fits) if lines else ""
    return [*shown[: lines - 1], last if last.endswith("…") else f"{last}…"]
