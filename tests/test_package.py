"""The package as installed: entry points, metadata, and what importing it brings."""

import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, files, metadata, version
from pathlib import Path

import pytest

import camtools


@pytest.fixture(scope="module")
def project(repo):
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


def python(*args, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_version_is_said_once_everywhere(project):
    assert version("camtools") == project["version"]
    assert getattr(camtools, "__version__", project["version"]) == project["version"]


def test_metadata(project):
    data = metadata("camtools")
    assert data["License-Expression"] == "Apache-2.0"
    assert data["Requires-Python"] == ">=3.11"
    assert set(data.get_all("Provides-Extra")) == {"test", "crf", "bench", "docs"}


def test_adapters_are_entry_points_that_load():
    found = {
        point.name: point.load() for point in entry_points(group="camtools.adapters") if point.dist.name == "camtools"
    }
    assert set(found) == {"described", "timm", "torchvision", "generic"}
    assert {point.name for point in entry_points(group="console_scripts") if point.dist.name == "camtools"} == {
        "camtools"
    }


def test_the_packages_are_this_repositorys(repo):
    import camtools_adapters
    import camtools_recipes

    if not any(str(file).startswith("__editable__") for file in files("camtools")):
        pytest.skip("camtools is installed as a copy, not editable")
    assert Path(camtools.__file__).parent == repo / "camtools"
    assert Path(camtools_adapters.__file__).parent == repo / "adapters" / "camtools_adapters"
    assert Path(camtools_recipes.__file__).parent == repo / "recipes" / "camtools_recipes"


@pytest.mark.parametrize("package", ["camtools", "adapters/camtools_adapters", "recipes/camtools_recipes"])
def test_packages_are_typed_and_every_folder_is_one(repo, package):
    assert (repo / package / "py.typed").is_file()
    folders = {file.parent for file in (repo / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_everything_exported_exists():
    assert [name for name in camtools.__all__ if not hasattr(camtools, name)] == []


@pytest.mark.parametrize("where", ["repository", "elsewhere"])
def test_runs_from_the_repository_and_from_anywhere(repo, tmp_path, where):
    result = python("-m", "camtools", "--version", cwd=repo if where == "repository" else tmp_path)
    assert (result.returncode, result.stdout) == (0, f"camtools {version('camtools')}\n"), result.stderr


def test_licence_and_changelog(repo):
    licence = (repo / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "## [Unreleased]" in (repo / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_wheel_holds_all_three_packages(repo, tmp_path):
    import shutil
    import zipfile

    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", ".venv", "out")
    shutil.copytree(repo, tmp_path / "copy", ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path))
    made = python("-m", "pip", "wheel", *options, str(tmp_path / "copy"), cwd=tmp_path)
    if made.returncode:
        pytest.skip(f"needs setuptools in this environment to build: {made.stderr[-200:]}")
    (wheel,) = tmp_path.glob("camtools-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("camtools", "adapters/camtools_adapters", "recipes/camtools_recipes"):
        root = (repo / package).parent
        assert {path.relative_to(root).as_posix() for path in (repo / package).rglob("*.py")} <= held
        assert f"{Path(package).name}/py.typed" in held
    assert not [name for name in held if name.startswith(("tests", "docs", "build"))]


def test_children_of_tests_take_signals_even_where_the_suite_ignores_them(run_python):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = run_python("-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__)")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.stdout == "default_int_handler\n"
