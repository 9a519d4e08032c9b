"""Which class is meant: names, what a caller may give as a target, and a data set's classes among a model's."""

from camtools.classes.names import imagenet_names, load_names, resolve_target

__all__ = ["imagenet_names", "load_names", "resolve_target"]
