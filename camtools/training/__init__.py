"""Fine-tuning with picture labels: `finetune`, the base class of recipes, and the settings they share."""

from camtools.training.config import TrainConfig, option
from camtools.training.recipe import Batch, Recipe
from camtools.training.registry import installed_recipes, make_recipe, recipe_class
from camtools.training.run import FinetuneResult, finetune

__all__ = [
    "Batch",
    "FinetuneResult",
    "Recipe",
    "TrainConfig",
    "finetune",
    "installed_recipes",
    "make_recipe",
    "option",
    "recipe_class",
]
