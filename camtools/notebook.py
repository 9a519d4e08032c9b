"""How results look in a notebook: small HTML, with images inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, TypeVar

from PIL import Image

T = TypeVar("T")
SIDE = 800  # pixels that an image's longer side has at most in a notebook, which keeps every image in its file
MOST = 24  # items of a list that are shown


class ResultList(list[T]):
    """A list of results, or of such lists, that notebooks show as images; a plain list in every other way."""

    def _repr_html_(self) -> str:
        """Return the images side by side, a list of lists as rows; of long lists the first 24."""
        shown = [item._repr_html_() for item in self[:MOST] if hasattr(item, "_repr_html_")]
        if not shown:
            return f"<code>{escape(repr(self))}</code>"
        rest = f"<p>and {len(self) - MOST} more</p>" if len(self) > MOST else ""
        rows = any(isinstance(item, ResultList) for item in self)
        style = "" if rows else ' style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-end"'
        return f"<div{style}>{''.join(shown)}{rest}</div>"


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    """Return an image as the bytes of a file, shrunk to what a notebook has room for.

    Args:
        image: RGB.
        kind: "png" or "jpeg".
    """
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(file, kind)
    return file.getvalue()


def html_figure(image: Image.Image, caption: str) -> str:
    """Return an image with a caption.

    Args:
        image: RGB.
        caption: Plain text.
    """
    data = base64.b64encode(encoded(image, "jpeg")).decode()
    words = escape(caption)
    return (
        f'<figure style="display:inline-block;margin:0"><img alt="{words}" src="data:image/jpeg;base64,{data}">'
        f'<figcaption style="text-align:center">{words}</figcaption></figure>'
    )


def html_table(rows: Iterable[Sequence[Any]], header: Sequence[Any] = (), caption: str = "") -> str:
    """Return a table.

    Args:
        rows: Cells, shown as plain text.
        header: Names of the columns; none for a table of names and values.
        caption: What stands over it.
    """
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    said = f'<caption style="text-align:left">{escape(caption)}</caption>' if caption else ""
    return f"<table>{said}{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
