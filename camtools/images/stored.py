"""Images that are no files of this machine: in memory, in archives, in stores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageBytes:
    """An image file that is in memory already: of an archive, a database, a store of one's own.

    Attributes:
        data: The file's bytes.
        name: What results and messages call it; None for nothing.
    """

    data: bytes
    name: str | None = None


def in_store(text: str) -> bool:
    """Whether text is the URL of a store such as s3, gs, az or memory; web pages are nobody's store."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.isidentifier() and scheme not in ("http", "https", "ftp", "file")
