"""Recipes by name: what installed packages offer under the entry point group `camtools.recipes`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from camtools.errors import InputError, ModelError
from camtools.plugins import described, load_plugin, owner, plugins
from camtools.training.recipe import Recipe

GROUP = "camtools.recipes"


def installed_recipes() -> dict[str, EntryPoint]:
    """Return the entry point of every recipe by its name, in alphabetical order; nothing is imported."""
    return {point.name: point for point in plugins(GROUP)}


def recipe_class(name: str) -> type[Recipe]:
    """Return a recipe's class.

    Raises:
        InputError: There is none of that name; says which is closest.
        ModelError: It cannot be imported, or is no recipe; names the distribution to fix or remove.
    """
    known = installed_recipes()
    if name not in known:
        close = difflib.get_close_matches(str(name).lower(), known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"there is no recipe {name!r}. {hint}Expected one of {', '.join(known) or 'none: none is installed'}"
        )
    kind = load_plugin(known[name])
    if not (isinstance(kind, type) and issubclass(kind, Recipe)):
        raise ModelError(
            f"{described(known[name])} is no subclass of camtools.training.Recipe. Fix or uninstall "
            f"{owner(known[name])}"
        )
    return kind


def make_recipe(recipe: str | Recipe, options: Mapping[str, Any]) -> Recipe:
    """Return a recipe with its settings.

    Args:
        recipe: A name, or a recipe, which has its settings already.
        options: Settings by name, see `TrainConfig.of`.

    Raises:
        InputError: It is neither, there is no such recipe or setting, or a value is out of range.
        ModelError: It cannot be imported.
    """
    if isinstance(recipe, Recipe):
        if options:
            raise InputError(
                f"{recipe.name!r} comes with its settings, so {', '.join(options)} cannot be given beside it: expected "
                f"{type(recipe).__name__}({type(recipe).__name__}.Config(...)), or the recipe's name"
            )
        return recipe
    if not isinstance(recipe, str):
        raise InputError(f"recipe={recipe!r}: expected a recipe's name, or a camtools.training.Recipe")
    kind = recipe_class(recipe)
    return kind(kind.Config.of(options))
