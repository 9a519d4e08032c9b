"""camtools: class activation maps, masks and boxes for classifiers that people already have.

`explain(model, image)` says where a classifier sees a class; `Explainer` is its reusable form; `wrap(model)` gives the
classifier's last features, class weights and maps, differentiable; `Pipeline` and `steps` change how maps are made;
`segment(model, image)` makes a semantic mask of several classes; `evaluate(model, dataset, pipeline)` measures maps.

Nothing is imported before it is first used; the names are listed in `__init__.pyi`.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import lazy_loader

from camtools import moved

__version__ = "0.1.0"

_attribute, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(set(_names) - {module.name for module in iter_modules(__path__)})

moved.install()


def __getattr__(name: str) -> Any:
    """Import what is asked for; a name that has moved to a sub-package comes with a warning."""
    if name not in moved.NAMES:
        return _attribute(name)
    package = moved.NAMES[name]
    moved.warn(f"camtools.{name}", f"{package}.{name}")
    return getattr(import_module(package), name)
