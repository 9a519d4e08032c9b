"""Colours for class numbers: PASCAL VOC's, in which most semantic masks are stored."""

from __future__ import annotations

LARGEST = 255
"""The largest value of an image with a palette."""

Colour = tuple[int, int, int]


def voc_colour(value: int) -> Colour:
    """Return the colour of a value in PASCAL VOC's palette: 0 is black, 1 (128, 0, 0), 255 (224, 224, 192).

    Red, green and blue take the value's bits in turn, lowest first, as their own bits from the highest down.

    Source: Everingham et al., VOC development kit, `VOClabelcolormap`.

    Args:
        value: 0 to 255; of larger ones the lowest 24 bits count.
    """
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def voc_palette() -> list[int]:
    """Return all 256 colours one after another, as `PIL.Image.putpalette` takes them."""
    return [channel for value in range(LARGEST + 1) for channel in voc_colour(value)]
