"""Command lines of every kind: a documented exit code, and if something is wrong a few words on stderr."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz_nets import COLOURS
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from camtools.cli import app

NET = f"{Path(__file__).with_name('fuzz_nets.py')}:colours"
NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "-1", "0.5", "1e3", "nan", "inf", "-inf", "1e999", "", " 1", "0x1", "1_0"]),
    st.sampled_from([str(2**31), str(2**63), str(10**30), "9" * 400, "-9999999999999999999", "1,2", "0.5,0.5,0.5"]),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", ".", "..", "/", "~", "none", "random", "cam", "--", "-", "=", "a=b", "\0", "\udcff", "%s", "{}"]
    ),
    st.sampled_from(
        ["x" * 300, "x/" * 200, "pics", "pics.csv", "nothing", "broken.pth", "names.txt", "*.png", "[", "[[]"]
    ),
    NUMBERS,
)
MODELS = st.one_of(
    st.sampled_from([NET] * 12),
    st.sampled_from(
        ["timm/nothing", "torchvision/", "nets.py:nothing", ":", "json:loads", "os:getcwd", "timm/", "a/b"]
    ),
    st.sampled_from(["broken.pth", "pics.csv", "pics", "", "\0", f"{NET}.x", "fuzz_nets.py:"]),
)
DATA = st.sampled_from(
    ["boxfolder:pics"] * 8
    + [
        "boxfolder:",
        "boxfolder:nothing",
        "pics",
        ":",
        "cub:pics",
        "boxfolder:pics?n=1",
        "boxfolder:pics?",
        "scenes:test",
    ]
    + ["voc2012:pics", "boxfolder:\0", "?=", "scenes:test?n=x", "scenes:test?n=2", "json:pics", "a" * 300]
)
OUT = st.sampled_from(
    ["out", "out", "out", "pics.csv", "pics.csv/x", "x" * 300, "\0", "", "pics", "deep/out", "/proc/x"]
)
SETTINGS = st.one_of(
    st.tuples(
        st.sampled_from(
            ["epochs", "batch_size", "lr", "seed", "input_size", "augment", "best", "ema", "has_grid", "warmup"]
        ),
        st.sampled_from(["=", "", "=="]),
        WORDS,
    ).map("".join),
    WORDS,
)
SHARED = {
    "--model": MODELS,
    "--weights": WORDS,
    "--mean": WORDS,
    "--std": WORDS,
    "--size": st.one_of(st.sampled_from(["32", "40x24", "0", "1", "9999999x9999999", "32x"]), WORDS),
    "--class-names": WORDS,
    "--model-arg": WORDS,
    "--device": st.one_of(st.sampled_from(["cpu"] * 4), WORDS),
    "--batch-size": NUMBERS,
    "--out": OUT,
    "--format": WORDS,
}
OWN = {
    "explain": {"--target": WORDS, "--top-k": NUMBERS, "--pipeline": WORDS, "--threshold": WORDS, "--resume": None},
    "segment": {
        "--top-k": NUMBERS,
        "--pipeline": WORDS,
        "--resume": None,
        "--class": WORDS,
        "--min-score": NUMBERS,
        "--activation": WORDS,
    },
    "evaluate": {
        **{"--pipeline": WORDS, "--protocol": WORDS, "--metric": WORDS, "--calibrate": DATA, "--fresh": None},
        **{"--limit": NUMBERS, "--every": NUMBERS, "--skip": NUMBERS, "--scoremaps": WORDS, "--workers": NUMBERS},
        **{"--seed": NUMBERS, "--activation": WORDS},
    },
    "finetune": {
        "--val": DATA,
        "--set": SETTINGS,
        "--resume": None,
        "--seed": NUMBERS,
        "--lr": NUMBERS,
        "--settings": None,
    },
    "models": {"--model": MODELS, "--size": WORDS, "--model-arg": WORDS, "--format": WORDS},
}
GIVEN = {
    "explain": ["pics/red/0.png", "--device", "cpu"],
    "segment": ["pics/red/0.png", "--device", "cpu"],
    "evaluate": ["--bootstrap", "0", "--no-report", "--device", "cpu", "--limit", "1"],
    "finetune": ["--device", "cpu", "--epochs", "1", "--set", "input_size=32"],
    "models": ["colours"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, their boxes, and files that are no good."""
    folder = tmp_path_factory.mktemp("commands")
    lines = ["file,class,x0,y0,x1,y1,width,height"]
    for number, colour in enumerate(COLOURS):
        pixels = np.zeros((24, 24, 3), np.uint8)
        pixels[4:14, 6:18, number] = 230
        (folder / "pics" / colour).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "pics" / colour / "0.png")
        lines.append(f"{colour}/0.png,{colour},6,4,18,14,24,24")
    (folder / "pics.csv").write_text("\n".join(lines) + "\n")
    (folder / "broken.pth").write_bytes(b"PK\x03\x04broken")
    (folder / "names.txt").write_text("red\ngreen\n")
    return folder


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw a command with one to three options of its own or of another, after some that are right."""
    name = draw(st.sampled_from(sorted(OWN)))
    options = (SHARED if name != "models" else {}) | OWN[name]
    drawn = draw(st.lists(st.sampled_from(sorted(options)), min_size=0, max_size=3))
    words = list(GIVEN[name])
    words += [] if name == "models" or "--model" in drawn else ["--model", NET]
    words += ["--data", draw(DATA)] if name in ("evaluate", "finetune") else []
    words += [draw(st.sampled_from(["gap", "gap", "gap", "tap", "nothing", ""]))] if name == "finetune" else []
    words += ["--out", "out"] if name == "finetune" and "--out" not in drawn else []
    for option in drawn:
        value = options[option]
        words += [option] if value is None else [option, draw(value)]
    words += draw(st.lists(WORDS, max_size=1)) if draw(st.integers(0, 4)) == 0 else []
    return [name, *words]


@examples(4)
@given(argv=command_lines())
def test_command_lines(place: Path, argv: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = CliRunner().invoke(app, argv)
    for name in ("out", "deep"):
        shutil.rmtree(place / name, ignore_errors=True)
    assert result.exception is None or isinstance(result.exception, SystemExit), f"{argv}: {result.exception!r}"
    assert result.exit_code in (0, 1, 2), argv
    assert "Traceback" not in result.stderr
    if result.exit_code == 2:
        assert re.search(r"Error: \S|Error ─|Usage: ", result.stderr), result.stderr
        assert result.stdout == ""
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) < 2, errors
