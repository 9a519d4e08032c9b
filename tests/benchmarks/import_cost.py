"""What importing costs, in CPU time: `import torch`, `import camtools`, and the command's help and version.

`python tests/benchmarks/import_cost.py` starts each in a process of its own, in turn, and prints medians and their
ratios to `import torch`. `import camtools` must cost at most 1.2 times as much.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

JOBS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import camtools": ["-c", "import camtools"],
    "camtools.explain": ["-c", "import camtools; camtools.explain"],
    "camtools --help": ["-m", "camtools", "--help"],
    "camtools --version": ["-m", "camtools", "--version"],
    "camtools explain --help": ["-m", "camtools", "explain", "--help"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU time, user and system, of one run of Python."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds, after one that is not counted")
    rounds = [{name: cpu_seconds(job) for name, job in JOBS.items()} for _ in range(parser.parse_args().repeats + 1)]
    medians = {name: statistics.median(row[name] for row in rounds[1:]) for name in JOBS}
    print(f"{'':24}{'CPU s':>8}{'range':>16}{'/ torch':>9}")
    for name, median in medians.items():
        times = [row[name] for row in rounds[1:]]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{name:24}{median:8.2f}{spread:>16}{median / medians['import torch']:9.2f}")


if __name__ == "__main__":
    main()
