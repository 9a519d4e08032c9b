"""Runs that are killed at any change of a file, with other settings in between: in the end as if nothing had been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fuzz_nets import COLOURS
from fuzz_runs import KILLED, Ended, command
from fuzzing import examples, files_below
from hypothesis import Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from PIL import Image

MODEL = ("--model", f"{Path(__file__).with_name('fuzz_nets.py')}:colours", "--device", "cpu")
MODES = ("--resume", "--fresh")


def draw(folder: Path, shift: int = 0) -> None:
    """Draw an image of each colour and one more, a rectangle on noise, with the boxes beside them."""
    lines = ["file,class,x0,y0,x1,y1,width,height"]
    for number in range(4):
        colour, x0 = COLOURS[number % 3], 4 + number + shift
        pixels = np.random.default_rng(number).integers(0, 60, (24, 24, 3), dtype=np.uint8)
        pixels[4:14, x0:18, number % 3] = 230
        name = f"{colour}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
        lines.append(f"{name},{colour},{x0},4,18,14,24,24")
    folder.with_suffix(".csv").write_text("\n".join(lines) + "\n")


def option(*choices: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Draw an option with its value: words with a blank between, or none."""
    return st.sampled_from([tuple(choice.split()) for choice in choices])


def arguments(*options: st.SearchStrategy[tuple[str, ...]]) -> st.SearchStrategy[tuple[str, ...]]:
    """Draw several options."""
    return st.tuples(*options).map(lambda drawn: tuple(word for words in drawn for word in words))


class Runs(RuleBasedStateMachine):
    """Runs of one command into one folder.

    After each that came to its end, the folder is that of the same command in an empty folder; or the command has
    refused in one line and has changed nothing. The last one always ends.
    """

    place: ClassVar[Path]
    whole: ClassVar[dict[tuple[Any, ...], tuple[dict[str, Any], int]]]
    kills: ClassVar[int]
    verb: ClassVar[tuple[str, ...]]
    mode: ClassVar[st.SearchStrategy[tuple[str, ...]]]
    options: ClassVar[st.SearchStrategy[tuple[str, ...]]]

    def __init__(self) -> None:
        super().__init__()
        self.out = self.place / "out"
        self.last: tuple[str, ...] = ()
        self.own: dict[str, bytes] = {}
        self.shift = 0
        draw(self.place / "pics")
        shutil.rmtree(self.out, ignore_errors=True)

    @initialize(data=st.data())
    def will_end(self, data: st.DataObject) -> None:
        self.last = data.draw(self.options) + data.draw(self.mode)

    @rule(data=st.data(), at=st.one_of(st.floats(0, 1), st.floats(0, 1), st.just(2.0)))
    def runs(self, data: st.DataObject, at: float) -> None:
        given = data.draw(self.options)
        kill_at = 0 if at == 2 else 1 + int(at * self.expected(given)[1])
        self.run(given + data.draw(self.mode), kill_at)

    @rule(data=st.data(), at=st.floats(0, 1))
    def runs_as_in_the_end(self, data: st.DataObject, at: float) -> None:
        given = tuple(word for word in self.last if word not in MODES)
        self.run(given + data.draw(self.mode), 1 + int(at * self.expected(given)[1]))

    @rule(data=st.data())
    def changes(self, data: st.DataObject) -> None:
        files = sorted(self.content(self.out).keys() - self.own.keys())
        if files and data.draw(st.booleans()):
            (self.out / data.draw(st.sampled_from(files))).unlink()
        else:
            name = data.draw(st.sampled_from(["notes.txt", "red/0/notes.txt", "red/0/1-green/notes.txt"]))
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_text("mine")
            self.own[name] = b"mine"

    def teardown(self) -> None:
        self.run(self.last)

    def run(self, argv: tuple[str, ...], kill_at: int = 0) -> None:
        """Run the command, and check what it leaves if it isn't killed."""
        before = self.content(self.out)
        ended = command([*self.verb, *MODEL, *argv, "--out", "out"], self.place, kill_at)
        if ended.code == KILLED:
            type(self).kills += 1
            event(f"{self.verb[0]}: killed")
            return
        event(f"{self.verb[0]}: {'refused' if ended.code else 'done'}")
        found = self.content(self.out)
        if ended.code:
            refusal(ended)
            assert found.keys() == before.keys() and all(same(found[name], before[name]) for name in found)
            return
        assert not (left := list(self.out.rglob(".*"))), f"left over: {left}"
        given = tuple(word for word in argv if word not in MODES)
        expected = self.expected(given)[0] | self.own
        expected = self.allowed(given, found) | expected
        assert found.keys() == expected.keys(), f"{sorted(found.keys() ^ expected.keys())} after {argv}"
        different = [name for name in found if not same(found[name], expected[name])]
        assert not different, f"{different} after {argv}: {ended.stderr}"

    def expected(self, given: tuple[str, ...]) -> tuple[dict[str, Any], int]:
        """Return what the command leaves in an empty folder, and how many changes of files that takes."""
        key = (self.shift, *given)
        if key not in self.whole:
            folder = self.place / "whole"
            ended = command([*self.verb, *MODEL, *given, "--out", "whole"], self.place)
            assert ended.code == 0, ended.stderr
            self.whole[key] = self.content(folder), ended.changes
            shutil.rmtree(folder)
        return self.whole[key]

    def allowed(self, given: tuple[str, ...], found: dict[str, Any]) -> dict[str, Any]:
        """Return what may be there as well, of what is found: files of earlier runs that are right still."""
        return {}

    def content(self, folder: Path) -> dict[str, Any]:
        """Return the files of a run, but for what each run does anew."""
        return {name: data for name, data in files_below(folder).items() if not hidden(name)}


def hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden."""
    return any(part.startswith(".") for part in Path(name).parts)


def same(one: Any, other: Any) -> bool:
    """Whether two contents of files are the same."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def refusal(ended: Ended) -> None:
    """Check that a command says in one line what is wrong with how it is used."""
    lines = ended.stderr.strip().splitlines()
    assert ended.code == 2 and ended.stdout == "" and lines[-1].startswith("Error: "), ended
    assert "Traceback" not in ended.stderr, ended.stderr


class Explaining(Runs):
    verb = ("explain", "pics")
    mode = option("", "--resume", "--resume")
    options = arguments(
        option("", "--pipeline rcam"),
        option("", "--top-k 2", "--top-k 3", "--target red", "--target blue --target green"),
        option("", "--threshold 0.5"),
    )

    @rule(shift=st.integers(0, 2))
    def has_other_images(self, shift: int) -> None:
        self.shift = shift
        draw(self.place / "pics", shift)


class Evaluating(Runs):
    verb = ("evaluate", "--data", "boxfolder:pics", "--protocol", "native")
    mode = option("", "--fresh")
    options = arguments(
        option("", "--pipeline cam,rcam"),
        option("", "", "--limit 3"),
        option("", "", "--calibrate boxfolder:pics"),
        option("--bootstrap 0", "--bootstrap 5"),
        option("--no-report", "--no-report", "--no-report", ""),
        option("--batch-size 1", "--batch-size 2"),
    )

    def allowed(self, given: tuple[str, ...], found: dict[str, Any]) -> dict[str, Any]:
        report = self.expected(tuple(word for word in given if word != "--no-report"))[0]
        return {name: report[name] for name in found if name in report}

    def content(self, folder: Path) -> dict[str, Any]:
        kept = ("shards/", "calibration/run.json")  # batches for another time
        return {n: d for n, d in super().content(folder).items() if not any(word in n for word in kept)}


class Finetuning(Runs):
    verb = ("finetune", "--data", "boxfolder:pics", "--set", "input_size=32", "--set", "augment=flip")
    mode = option("", "--resume", "--resume")
    options = arguments(
        option("gap", "cream"),
        option("--epochs 1", "--epochs 2"),
        option("", "--val boxfolder:pics"),
        option("--batch-size 1", "--batch-size 3"),
        option("", "--set save_every=1"),
    )

    def content(self, folder: Path) -> dict[str, Any]:
        found = {n: d for n, d in super().content(folder).items() if not n.startswith("tensorboard/events")}
        for name in [name for name in found if name == "state.pt"]:
            found[name] = torch.load(folder / name, weights_only=True)
        return found


@pytest.mark.parametrize("machine", [Explaining, Evaluating, Finetuning])
def test_killed_at_any_moment(machine: type[Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine.place, machine.whole, machine.kills = tmp_path, {}, 0
    few = settings(examples(0.05), stateful_step_count=5, phases=[Phase.generate])  # shrinking would take long
    try:
        run_state_machine_as_test(machine, settings=few)
    finally:
        with capsys.disabled():
            print(f"\n{machine.verb[0]}: {machine.kills} kills")
