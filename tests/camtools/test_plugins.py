"""Adapters, commands, recipes and sources are found without an import, as entry points of installed packages."""

from importlib.metadata import EntryPoint, entry_points

import pytest

from camtools import ModelError, plugins


def test_entry_points_are_those_of_the_installed_packages_by_name():
    points = plugins.plugins("camtools.adapters")
    assert set(points) == set(entry_points(group="camtools.adapters"))
    assert [point.name for point in points] == sorted(point.name for point in points)
    assert {point.name for point in points} >= {"described", "timm", "torchvision", "generic"}


def test_a_checkout_that_was_never_installed_is_told_so():
    with pytest.raises(ModelError, match=r"'camtools\.nothing'.*expected an installed camtools.*pip install -e \."):
        plugins.plugins("camtools.nothing")


def test_a_broken_plug_in_is_named_with_its_package():
    broken = EntryPoint("mine", "no_such_package:Thing", "camtools.sources")
    with pytest.raises(
        ModelError, match=r"source 'mine' \(no_such_package:Thing\) cannot be loaded: .*no_such_package"
    ):
        plugins.load_plugin(broken)


def test_commands_of_plug_ins_join_the_others(tmp_path, run_python):
    (tmp_path / "mine.py").write_text("def wave(hand: str) -> None:\n    'Wave a hand.'\n    print('waved', hand)\n")
    record = tmp_path / "mine-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[camtools.commands]\nbroken = no_such_package:go\nwave = mine:wave\n")
    path = {"PYTHONPATH": str(tmp_path)}
    done = run_python("-m", "camtools", "wave", "left", env=path)
    assert (done.returncode, done.stdout) == (0, "waved left\n")
    assert "Error: command 'broken' (no_such_package:go) cannot be loaded" in done.stderr
    assert "Fix or uninstall mine" in done.stderr
    assert "Wave a hand." in run_python("-m", "camtools", "--help", env=path).stdout
