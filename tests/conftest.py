"""Fixtures that all tests share; tests are collected in importlib mode, so this is the only shared module."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.testing
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("YOLO_OFFLINE", "true")  # of ultralytics, which asks the network and writes settings otherwise
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
REPO = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    torch.set_num_threads(1)  # a test's tensors are small, and every core has a worker
typer.testing._get_command = functools.cache(typer.testing._get_command)  # else each run builds all commands anew

# Of the fuzz tests; here, because `--hypothesis-profile` is read before their own folder is.
settings.register_profile(
    "short",
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("short"), max_examples=2000, derandomize=False, print_blob=True)
settings.load_profile("short")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give the profile `long` a seed where none is asked for, so that it can be printed."""
    if config.option.hypothesis_profile == "long" and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    """Name the seed of the fuzz tests; "0" in the profile `short`, whose examples are always the same."""
    return f"fuzz: --hypothesis-seed={config.option.hypothesis_seed or 0}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, with the reason."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make every test's random numbers its own, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights beside the repository; skips where it is absent."""
    path = REPO.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("needs the shared images and weights (../shared), which are not here")
    return path


@pytest.fixture(scope="session")
def popen() -> Callable[..., subprocess.Popen[str]]:
    """Starts Python with arguments, pipes, and default signals: a suite in the background may ignore Ctrl-C itself.

    `popen(script, folder, env={"PAUSE": "1"})`: `env` is added to this process's environment, and the options of
    `subprocess.Popen` are taken.
    """

    def start(*arguments: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        ignored = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is signal.SIG_IGN]
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        try:
            return subprocess.Popen([sys.executable, *map(str, arguments)], **{"env": environment} | pipes | options)
        finally:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

    return start


@pytest.fixture(scope="session")
def run_python(popen: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with arguments to its end, as `popen` starts it: `run_python("-c", code).stdout`."""

    def run(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
        with popen(*arguments, **options) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """Runs a script, with some global names, in a process that has camtools imported: that takes longer than a test."""
    context = multiprocessing.get_context("forkserver")
    imported = ["camtools.cli", "camtools.explainer", "camtools.evaluation.report", "camtools.training", "accelerate"]
    context.set_forkserver_preload([*imported, "torch.utils.tensorboard", "pyarrow.parquet", "numba", "timm"])

    def make(script: object, **names: object) -> Any:
        process = context.Process(target=runpy.run_path, args=(str(script), names))
        process.start()
        return process

    return make


COLOURS = """
import os
from pathlib import Path

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 4, stride=4, bias=False), nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None] / 16)
            self.fc.weight.copy_(10 * torch.eye(3))

    def forward(self, x):
        deadly = Path(__file__).with_name("deadly")
        if deadly.exists():
            deadly.unlink()
            os.kill(os.getpid(), 9)
        return self.fc(self.conv(x).mean((2, 3)))

def colours():
    return {"model": Net(), "mean": 0.0, "std": 1.0, "size": 32, "class_names": ["red", "green", "blue"]}
"""


@pytest.fixture(scope="session")
def colours() -> str:
    """Source of a network whose class k is channel k; where there is a file "deadly" beside it, a forward is killed."""
    return COLOURS


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A CUDA device; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is, the CPU always."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    return torch.device(request.param)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No host name resolves, no proxy is set, and the download caches are empty."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    torch_home = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch"))
    yield
    torch.hub.set_dir(torch_home)


class TinyNet(nn.Module):
    """One convolution, average pooling, one linear layer: logits = W · mean(F) + b with F = relu(conv(x)).

    The input is 4 times as large as F on either side.
    """

    def __init__(self, num_classes: int = 3, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel_size=4, stride=4)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.relu(self.conv(x))).flatten(1))


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., TinyNet]:
    """Builds a `TinyNet(num_classes=3, channels=4)` with random weights, the same at every call, in eval mode."""

    def make(num_classes: int = 3, channels: int = 4) -> TinyNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return TinyNet(num_classes, channels).eval()

    return make


@pytest.fixture
def tiny(make_tiny: Callable[..., TinyNet]) -> TinyNet:
    """A `TinyNet` of 3 classes in eval mode."""
    return make_tiny()


@pytest.fixture
def ended_after_an_epoch() -> Callable[..., None]:
    """Return `finetune` for a recipe object, which is ended once the first epoch's checkpoint is written."""

    class Stop(Exception):
        pass

    def stops(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Stop

    def run(recipe: Any, *args: Any, **options: Any) -> None:
        import camtools  # late, as collecting tests needs none of it

        recipe.after_epoch = stops
        with pytest.raises(Stop):
            camtools.finetune(recipe, *args, **options)

    return run
