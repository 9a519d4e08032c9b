"""The package as installed: entry points, metadata, and what importing it brings."""

import re
import signal
import tomllib
from importlib.metadata import entry_points, files, metadata, version
from pathlib import Path

import pytest

import camtools


@pytest.fixture(scope="module")
def project(repo):
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


@pytest.fixture
def python(run_python, monkeypatch):
    """Runs Python on the installed packages, wherever it is started."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return run_python


def test_version_is_said_once_everywhere(project, repo):
    assert f"\nversion: {project['version']}\n" in (repo / "CITATION.cff").read_text()
    assert version("camtools") == project["version"]
    assert getattr(camtools, "__version__", project["version"]) == project["version"]


def test_metadata(project):
    data = metadata("camtools")
    assert data["License-Expression"] == "Apache-2.0"
    assert data["Requires-Python"] == ">=3.11"
    assert set(data.get_all("Provides-Extra")) == set(project["optional-dependencies"])


def test_the_installation_page_says_what_every_extra_is_for(project, repo):
    rows = re.findall(r"^\| (`.+?`) \|", (repo / "docs" / "install.md").read_text(), re.MULTILINE)
    said = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert sorted(said) == sorted(project["optional-dependencies"])


def ours(group):
    return {point.name: point for point in entry_points(group=group) if point.dist.name == "camtools"}


def test_plug_ins_are_entry_points_that_load():
    assert set(ours("camtools.adapters")) == {
        *("described", "timm", "torchvision", "transformers", "ultralytics", "generic")
    }
    assert set(ours("camtools.sources")) == {"hf", "timm", "torchvision", "ultralytics"}
    assert set(ours("camtools.commands")) == {"reproduce"}
    assert set(ours("console_scripts")) == {"camtools"}
    for group in ("adapters", "sources", "commands", "recipes"):
        assert all(callable(point.load()) for point in ours(f"camtools.{group}").values())


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


HEAVY = (
    *("torch", "torchvision", "timm", "numpy", "scipy", "skimage", "matplotlib", "PIL", "safetensors", "torchmetrics"),
    *("pycocotools", "pyarrow", "numba", "accelerate", "tensorboard", "cv2"),
)
SHOW_HEAVY = f"print([name for name in {HEAVY} if name in sys.modules])"


def test_importing_camtools_brings_nothing_heavy(python):
    done = python("-c", f"import sys, camtools; camtools.__all__, dir(camtools), camtools.InputError; {SHOW_HEAVY}")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_help_and_version_bring_nothing_heavy(python):
    code = f"""
import sys
from typer.main import get_command
from typer.testing import CliRunner
from camtools.cli import app
names = list(get_command(app).commands)
for arguments in (["--version"], ["--help"], *([name, "--help"] for name in names)):
    assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
print(*names)
{SHOW_HEAVY}
"""
    done = python("-c", code)
    assert done.stderr == ""
    names, heavy = done.stdout.splitlines()
    assert names.split() == [
        *("calibrate", "demo", "doctor", "evaluate", "explain", "export-model", "export-results", "finetune"),
        *("models", "segment"),
        "reproduce",
    ]
    assert heavy == "[]"


DRAWING = """
import torch
from PIL import Image

pooled = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
model = torch.nn.Sequential(*pooled, torch.nn.Linear(4, 3))
exp = camtools.explain(model, Image.new("RGB", (40, 30)), trace=True)
exp.overlay(), exp.plot_trace(), camtools.plot.compare([exp])
print("matplotlib.pyplot" in sys.modules)
"""


def test_sub_packages_need_no_import_of_their_own_and_bring_nothing_that_few_need(python):
    names = ("classes", "datasets", "evaluation", "heads", "images", "metrics", "model", "pipeline", "plot", "sources")
    names += ("steps", "training")
    # `__getattr__`: what an earlier one has imported is an attribute already
    code = f"import camtools, sys{DRAWING}\nfor name in {names}: print(camtools.__getattr__(name).__name__)"
    pyplot, *found, numba = python("-c", f"{code}\nprint('numba' in sys.modules)").stdout.splitlines()
    assert found == [f"camtools.{name}" for name in names]
    assert pyplot == numba == "False"  # for `plot` without axes, and for the first boxes that are measured


def test_everything_exported_exists():
    assert [name for name in camtools.__all__ if not hasattr(camtools, name)] == []


@pytest.mark.parametrize("where", ["repository", "elsewhere"])
def test_runs_from_the_repository_and_from_anywhere(python, repo, tmp_path, where):
    result = python("-m", "camtools", "--version", cwd=repo if where == "repository" else tmp_path)
    assert (result.returncode, result.stdout) == (0, f"camtools {version('camtools')}\n"), result.stderr


def test_licence_and_changelog(repo):
    licence = (repo / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "## [Unreleased]" in (repo / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_wheel_holds_all_three_packages(python, repo, tmp_path):
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
    assert "camtools/__init__.pyi" in held
    assert not [name for name in held if name.startswith(("tests", "docs", "build"))]


def test_children_of_tests_take_signals_even_where_the_suite_ignores_them(run_python):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = run_python("-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__)")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.stdout == "default_int_handler\n"
