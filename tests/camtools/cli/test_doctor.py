"""`camtools doctor`, and shell completion."""

import platform
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


MAIN = "import sys; sys.argv = ['camtools']; from camtools.__main__ import main; main()"


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", "complete -o default -F _camtools_completion camtools"),
        ("zsh", "#compdef camtools"),
        ("fish", "complete --command camtools"),
    ],
)
def test_completion_scripts(run_python, shell, words):
    script = run_python("-c", MAIN, env={"_CAMTOOLS_COMPLETE": f"source_{shell}"}).stdout
    assert words in script and f"_CAMTOOLS_COMPLETE=complete_{shell}" in script


def test_completion_completes(run_python):
    for typed, expected in (("camtools ev", "evaluate"), ("camtools explain --pipel", "--pipeline")):
        env = {"_CAMTOOLS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        assert expected in run_python("-c", MAIN, env=env).stdout.split()
