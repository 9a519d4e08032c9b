"""Recipes by name."""

from importlib.metadata import EntryPoint

import pytest

from camtools.errors import InputError, ModelError
from camtools.training import Recipe, installed_recipes, make_recipe, recipe_class
from camtools.training import registry as module


def test_the_recipes_of_this_repository_are_found():
    assert {"gap", "tap", "wgap", "minmaxcam"} <= set(installed_recipes())
    for name in ("gap", "tap", "wgap", "minmaxcam"):
        assert recipe_class(name).name == name
        assert recipe_class(name)().summary.endswith(".") and len(recipe_class(name)().summary) > 20


def test_settings_reach_the_recipe():
    assert make_recipe("tap", {"theta": "0.3", "epochs": 4}).config.theta == 0.3
    own = recipe_class("gap")()
    assert make_recipe(own, {}) is own


def test_unknown_names_and_things():
    with pytest.raises(InputError, match=r"no recipe 'minmaxcan'. Did you mean 'minmaxcam'\? Expected one of"):
        make_recipe("minmaxcan", {})
    with pytest.raises(InputError, match="recipe=3: expected a recipe's name"):
        make_recipe(3, {})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'gap' comes with its settings, so lr cannot be given beside it"):
        make_recipe(recipe_class("gap")(), {"lr": 1})
    with pytest.raises(InputError, match="config is TrainConfig: expected tap's TapConfig"):
        recipe_class("tap")(recipe_class("gap").Config())


@pytest.mark.parametrize(
    ("value", "message"),
    [("nowhere.at_all:X", "cannot be loaded: No module"), ("json:dumps", "is no subclass of camtools.training.Recipe")],
)
def test_broken_plugins_are_named(monkeypatch, value, message):
    monkeypatch.setattr(module, "plugins", lambda group: [EntryPoint("bad", value, group)])
    with pytest.raises(ModelError, match=message):
        make_recipe("bad", {})


def test_a_third_partys_recipe(monkeypatch):
    monkeypatch.setattr(module, "plugins", lambda group: [EntryPoint("mine", "camtools.training:Recipe", group)])
    assert type(make_recipe("mine", {"epochs": 3})) is Recipe
