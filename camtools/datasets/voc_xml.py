"""Annotations in PASCAL VOC's XML, which ImageNet uses as well."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from camtools.errors import InputError


class XmlObject(NamedTuple):
    """One object of an annotation.

    Attributes:
        name: Its class, as written.
        box: xmin, ymin, xmax, ymax, as written.
        difficult: VOC's flag; False where there is none.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class XmlAnnotation(NamedTuple):
    """One picture's annotation.

    Attributes:
        size: (width, height) in pixels; None where it is not stated, or as 0.
        objects: In the file's order. Parts of objects (heads, hands) are left out.
    """

    size: tuple[int, int] | None
    objects: list[XmlObject]


def read_xml(path: Path) -> XmlAnnotation:
    """Read one annotation.

    Raises:
        InputError: The file is missing, is not XML, or an object lacks its name or box.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise InputError(
            f"the annotation {str(path)!r} cannot be read ({error.strerror}): expected VOC's XML"
        ) from error
    except ElementTree.ParseError as error:
        raise InputError(f"the annotation {str(path)!r} is not XML ({error}): copy or download it again") from error
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        objects = [_object(node) for node in root.iter("object")]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the annotation {str(path)!r} is not as in VOC ({error}): expected a name and a bndbox with xmin, ymin, "
            f"xmax and ymax in every object"
        ) from error
    return XmlAnnotation((width, height) if width and height else None, objects)


def _object(node: ElementTree.Element) -> XmlObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    values = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in values:
        raise ValueError(f"{name!r} has no box")
    x0, y0, x1, y1 = (float(value or "") for value in values)
    if not math.isfinite(x0 + y0 + x1 + y1) or x1 < x0 or y1 < y0:
        raise ValueError(f"{name!r} has the box {x0:g},{y0:g},{x1:g},{y1:g}")
    return XmlObject(name, (x0, y0, x1, y1), (node.findtext("difficult") or "0").strip() == "1")
