"""Drawn scenes with exact truth, and the small classifier that was trained on them."""

from camtools.datasets.scenes.dataset import Scenes
from camtools.datasets.scenes.network import SceneNet, scene_classifier
from camtools.datasets.scenes.scene import Creature, Scene

__all__ = ["Creature", "Scene", "SceneNet", "Scenes", "scene_classifier"]
