"""Fine-tuning with image labels: `finetune`, the base class of recipes, and the settings they share."""

from camtools.training.config import TrainConfig, option
from camtools.training.data import Batch
from camtools.training.finetuner import finetune
from camtools.training.recipe import Recipe
from camtools.training.registry import installed_recipes, make_recipe, recipe_class
from camtools.training.result import FinetuneResult

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
