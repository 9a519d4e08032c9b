"""The sizes that preprocessing makes of images, in whole pixels; needs nothing, for machines without torch too."""

from __future__ import annotations

LONGEST = 64  # how many times as long as its target a side may become; longer ones are squeezed


def resized_size(size: tuple[int, int], resize: int | tuple[int, int] | None, crop_mode: str) -> tuple[int, int]:
    """Return (height, width) after a resize, with torchvision's truncation and timm's rounding; at least 1 x 1.

    Args:
        size: (height, width) of the image.
        resize: The short side, (height, width), or None for the image as it is.
        crop_mode: What a pair means, as in `camtools.Preprocess`.
    """
    if resize is None:
        return size
    if isinstance(resize, int):
        # An image of 60,000 x 1 pixels would become one of 15 million by 256: its long side is squeezed instead.
        long = int(resize * min(max(size) / min(size), LONGEST))
        return (resize, long) if size[0] <= size[1] else (long, resize)
    if crop_mode == "squash":
        return resize
    ratios = size[0] / resize[0], size[1] / resize[1]
    ratio = min(ratios) if crop_mode == "center" else max(ratios)
    height, width = (max(1, round(side / ratio)) for side in size)
    return min(height, LONGEST * resize[0]), min(width, LONGEST * resize[1])


def centre_offset(side: int, crop: int) -> int:
    """Where a centred image starts in its crop, torchvision's rounding; negative if cut, positive if padded.

    Args:
        side: Length of the image, pixels.
        crop: Length of the crop, pixels.
    """
    return (crop - side) // 2 if crop > side else -round((side - crop) / 2)
