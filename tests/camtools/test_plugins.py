"""Adapters are found without an import: as entry points, or in a checkout that was never installed."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from camtools import plugins


def test_installed_entry_points_come_first():
    assert plugins.plugins("camtools.adapters") == list(entry_points(group="camtools.adapters"))
    assert {point.name for point in plugins.plugins("camtools.adapters")} >= {"timm", "torchvision", "generic"}


def test_a_checkout_that_was_never_installed(repo, tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("camtools", "adapters"):
        shutil.copytree(repo / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(repo / "pyproject.toml", tmp_path)
    script = """
import importlib.metadata, sys
from pathlib import Path
real = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **kw: [] if kw.get("group", "").startswith("camtools") else real(**kw)
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [path for path in sys.path if not path.endswith(("adapters", "recipes"))]
from camtools.adapter import installed_adapters
names = [adapter.name for adapter in installed_adapters()]
assert Path(sys.modules["camtools_adapters"].__file__).is_relative_to(Path.cwd())
print(names)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['described', 'timm', 'torchvision', 'generic']"


@pytest.mark.parametrize(
    "text", [None, "not toml [", "[tool]", '[project]\nname = "other"\n[project.entry-points.g]\na = "b"']
)
def test_no_checkout_has_none(monkeypatch, tmp_path, text):
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(plugins, "CHECKOUT", tmp_path)
    assert plugins.plugins("g") == []
