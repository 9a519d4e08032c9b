"""Adapters, recipes and sources are found without an import, as entry points of installed packages."""

from importlib.metadata import EntryPoint, entry_points

import pytest

from camtools import ModelError, plugins


def test_entry_points_are_those_of_the_installed_packages_by_name():
    found = plugins.plugins("camtools.adapters")
    assert set(found) == set(entry_points(group="camtools.adapters"))
    assert [point.name for point in found] == sorted(point.name for point in found)
    assert {point.name for point in found} >= {"described", "timm", "torchvision", "generic"}


def test_a_checkout_that_was_never_installed_is_told_so():
    with pytest.raises(ModelError, match=r"'camtools\.nothing'.*expected an installed camtools.*pip install -e \."):
        plugins.plugins("camtools.nothing")


def test_a_broken_plug_in_is_named_with_its_package():
    broken = EntryPoint("mine", "no_such_package:Thing", "camtools.sources")
    with pytest.raises(
        ModelError, match=r"source 'mine' \(no_such_package:Thing\) cannot be loaded: .*no_such_package"
    ):
        plugins.load_plugin(broken)
