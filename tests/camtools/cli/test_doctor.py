"""`camtools doctor`, and shell completion."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from typer.testing import CliRunner

from camtools.cli import app


def run(*args, **env):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "200"} | env)


def test_versions_devices_and_a_line_to_paste():
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    line = result.stdout.strip().splitlines()[-1]
    for package in ("camtools", "torch", "timm", "numpy"):
        assert f"{package} {version(package)}" in line
    assert f"Python {platform.python_version()}" in line and "cpu" in line
    assert "Device cpu" in result.stdout


def test_what_extras_lack(monkeypatch):
    def found(package):
        if package == "lacking-model":
            raise PackageNotFoundError(package)
        return "1.0"

    told = ["torch>=2", "lacking-model>=0.1; extra == 'demo'", 'pydensecrf2>=1.1; extra == "crf"']
    module = sys.modules["camtools.cli.doctor"]
    monkeypatch.setattr(module, "version", found)
    monkeypatch.setattr(module, "requires", lambda name: told)
    text = run("doctor").stdout
    assert "Extra demo: lacks lacking-model: pip install 'camtools[demo]'" in text
    assert "Extra crf: complete" in text and "Extra test" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    """Typer finds the program's name in how it was called, so the script runs as `camtools`."""
    code = f"import sys; sys.argv = ['camtools', '--show-completion', {shell!r}]; from camtools.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "_CAMTOOLS_COMPLETE" in done.stdout and "camtools" in done.stdout


def test_completion_completes(run_python):
    code = "import sys; sys.argv = ['camtools']; from camtools.cli import main; main()"
    for typed, expected in (("camtools ev", "evaluate"), ("camtools explain --pipel", "--pipeline")):
        env = {"_CAMTOOLS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        assert expected in run_python("-c", code, env=env).stdout.split()
