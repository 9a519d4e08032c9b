"""`camtools doctor`: what is installed, what the extras lack, and a line for a bug report."""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires, version

import typer

from camtools.cli.common import exit_codes, print_table

SHOWN = "camtools", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-image"
_EXTRA = re.compile(r"^(?P<package>[\w.-]+).*extra == ['\"](?P<extra>[\w-]+)['\"]")


def doctor() -> None:
    """Say what is installed here: versions, devices, and what the optional extras lack.

    Ends with a line to paste into a bug report. Nothing is sent anywhere.

    Exit codes: 0 done, 130 interrupted.
    """
    with exit_codes():
        versions = {name: _version(name) for name in SHOWN}
        devices = _devices()
        print_table(("Package", "Version"), ((name, found or "missing") for name, found in versions.items()))
        typer.echo(f"Python {platform.python_version()}, {platform.platform()}")
        for device in devices:
            typer.echo(f"Device {device}")
        for extra, missing in _missing().items():
            said = f"lacks {', '.join(missing)}: pip install 'camtools[{extra}]'" if missing else "complete"
            typer.echo(f"Extra {extra}: {said}")
        packages = ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items())
        typer.echo("\nFor a bug report:")
        typer.echo(f"{packages}; Python {platform.python_version()}; {platform.platform()}; {', '.join(devices)}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _missing() -> dict[str, list[str]]:
    """Return the packages that each extra of the installed camtools lacks."""
    missing: dict[str, list[str]] = defaultdict(list)
    for requirement in (requires("camtools") if _version("camtools") else None) or []:
        if match := _EXTRA.match(requirement):
            lacking = missing[match["extra"]]
            lacking += [match["package"]] if _version(match["package"]) is None else []
    return dict(missing)


def _devices() -> list[str]:
    """Return the devices that torch can use, each with a name."""
    try:
        import torch
    except ImportError as error:
        return [f"none: torch cannot be imported ({error})"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(count)]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [f"cpu {platform.machine()}, {torch.get_num_threads()} threads", *gpus, *mps]
