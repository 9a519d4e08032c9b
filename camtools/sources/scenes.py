"""The classifier that comes with camtools, by the name "scenes"."""

from __future__ import annotations

from typing import Any

from camtools.datasets.scenes.network import SceneNet, scene_classifier
from camtools.errors import WeightsError
from camtools.sources.base import Built, Source, way_out

NAME = "scenes"


class ScenesSource(Source):
    """`SceneNet`: trained on drawn scenes, its weights lie in the package; for trying things out without a network."""

    file_args = frozenset({"num_classes", "widths"})

    def __init__(self, args: dict[str, Any]) -> None:
        """Take the constructor's arguments, such as `widths`, which only fit other weights."""
        super().__init__(NAME, args)

    def empty(self, num_classes: int | None = None) -> Built:
        """Build it with random weights; its class names are the scenes' where it has as many classes."""
        args = dict(self.args) if num_classes is None else {**self.args, "num_classes": num_classes}
        return Built(self._construct(SceneNet, **args))

    def published(self, num_classes: int | None = None, tag: str | None = None) -> Built:
        """Build it with the weights that come with camtools.

        Raises:
            WeightsError: They are asked for with another number of classes, or other arguments.
        """
        if self.args or num_classes not in (None, len(SceneNet.classes)):
            asked = {**self.args, **({} if num_classes is None else {"num_classes": num_classes})}
            raise WeightsError(
                f"The weights that come with camtools are for the scenes' {len(SceneNet.classes)} classes and no other "
                f"arguments, but {asked} was asked for. {way_out(NAME)}"
            )
        return Built(scene_classifier())
