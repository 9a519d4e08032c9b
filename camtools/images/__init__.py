"""From what a caller gives to what the model takes: reading, preprocessing, and where the input lies in the image."""

from camtools.images.geometry import Geometry
from camtools.images.preprocess import Preprocess, as_transform
from camtools.images.read import InputImage, read_image
from camtools.images.stored import ImageBytes

__all__ = ["Geometry", "ImageBytes", "InputImage", "Preprocess", "as_transform", "read_image"]
