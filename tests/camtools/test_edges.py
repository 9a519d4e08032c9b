"""What no caller should have to handle but as an error of camtools: odd files, counts, tensors and names."""

import os
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import camtools
from camtools import Pipeline, PipelineError
from camtools.checkpoints import read_checkpoint
from camtools.classes.names import load_names
from camtools.cli.results import class_folder
from camtools.errors import InputError, ModelError, TargetError, WeightsError
from camtools.files import check_writable, read_text, shortened
from camtools.images.find import find_jobs
from camtools.steps import PaS, Sigmoid

IMAGE = np.zeros((40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return timm.create_model("test_resnet", num_classes=5).eval()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (torch.rand(3, 4), r"holds no state dict, but a single tensor \(3, 4\) float32"),
        (torch.tensor(1.0), r"a single tensor \(\) float32"),
        ([torch.rand(3)] * 2, "but a list"),
        ({}, "but nothing"),
    ],
)
def test_a_checkpoint_without_a_state_dict_is_named(tmp_path, held, words):
    torch.save(held, tmp_path / "held.pth")
    with pytest.raises(WeightsError, match=words):
        camtools.load_model("timm/test_resnet", tmp_path / "held.pth")


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True, 10**9])
def test_a_number_of_classes_is_checked_before_anything_is_built(count):
    for spec in ("timm/test_resnet", "torchvision/squeezenet1_1", "scenes"):
        for given in ({"num_classes": count}, {"model_args": {"num_classes": count}}):
            with pytest.raises(ModelError, match=r"num_classes=.*: expected a whole number of at least 1 and at most"):
                camtools.load_model(spec, "random", **given)
    with pytest.raises(ModelError, match="was given twice"):
        camtools.load_model("timm/test_resnet", "random", num_classes=3, model_args={"num_classes": 3})


def test_a_number_of_classes_among_the_model_arguments_counts():
    assert camtools.load_model("timm/test_resnet", "random", model_args={"num_classes": 3}).model.num_classes == 3


@pytest.mark.parametrize(
    "names", [5, "abcde", [1, 2, 3, 4, 5], [None] * 5, {0: "a"}, [b"a"] * 5, np.arange(5), torch.zeros(())]
)
def test_class_names_that_are_no_names(model, names):
    with pytest.raises(TargetError, match=r"class_names=.*expected a list of one name per class"):
        camtools.load_model("timm/test_resnet", "random", num_classes=5, class_names=names)
    for make in (camtools.Explainer, camtools.Segmenter):
        with pytest.raises(TargetError, match=r"class_names=.*expected a list of one name per class"):
            make(model, class_names=names)


ODD = {
    "meta": torch.zeros(3, 8, 8, device="meta"),
    "sparse": torch.zeros(3, 8, 8).to_sparse(),
    "float8": torch.zeros(3, 8, 8).to(torch.float8_e4m3fn),
    "meta batch": torch.zeros(2, 3, 8, 8, device="meta"),
    "sparse batch": torch.zeros(2, 3, 8, 8).to_sparse(),
    "float8 batch": torch.zeros(2, 3, 8, 8).to(torch.float8_e4m3fn),
    "nested": torch.nested.nested_tensor([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_values_are_named_by_all_that_take_images(model, kind):
    for call in (camtools.Explainer(model), camtools.Segmenter(model), camtools.wrap(model).maps):
        with pytest.raises(InputError, match=r"sparse, nested, quantized or meta|float16 or wider"):
            call(ODD[kind])


@pytest.mark.parametrize("given", [None, 5, np.zeros((1, 3, 8, 8)), torch.zeros(3, 8, 8), torch.zeros(())])
def test_what_is_no_batch_is_named(model, given):
    with pytest.raises(InputError, match=r"the input is .*: expected .*\(B, C, H, W\)"):
        camtools.wrap(model).maps(given)


@pytest.mark.parametrize("targets", [range(10**9), range(10**18), [range(10**9)]])
def test_lists_longer_than_there_are_classes_take_no_memory(model, targets):
    with pytest.raises(TargetError, match=r"1000000000|targets"):
        camtools.explain(model, IMAGE, target=targets)
    with pytest.raises(TargetError, match=r"targets of shape .* do not go with 1 images"):
        camtools.wrap(model).maps(torch.zeros(1, 3, 64, 64), targets)


@pytest.mark.parametrize("size", ["a", (1, 2, 3), 2.5, (0, 5), -1, 100_000, (10**9, 1)])
def test_sizes_that_no_input_has(size):
    with pytest.raises(ModelError, match=r"size|impossible|more than a network and memory take"):
        camtools.load_model("timm/test_resnet", "random", size=size)


def test_banks_of_other_things_and_with_shared_memory(tmp_path):
    vectors, counts = torch.rand(2, 3), torch.ones(2, 2).long()
    for odd in (None, "a", [1], np.zeros((2, 3)), vectors.to_sparse(), torch.zeros(2, 3, device="meta")):
        with pytest.raises(InputError, match="foreground"):
            camtools.ContextBank(odd, vectors, counts)
    bank = camtools.ContextBank(vectors, vectors, counts)
    long = tmp_path / f"{'y' * 230}.safetensors"
    bank.save(long)
    assert camtools.ContextBank.load(long).background.equal(vectors)
    for bad in ("a\0b", "z" * 300, tmp_path, "", "."):
        with pytest.raises(InputError, match="cannot be written"):
            bank.save(bad)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_side_files_are_files_of_a_bounded_size(tmp_path, model):
    pipe, large = tmp_path / "pipe", tmp_path / "large.txt"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(10**11)  # takes no room
    for path in (pipe, large, tmp_path):
        with pytest.raises(OSError, match="it is no file of at most"):
            read_text(path)
        with pytest.raises(TargetError, match="class names cannot be read"):
            camtools.classes.names.load_names(path)
        with pytest.raises(InputError):
            camtools.evaluation.calibrated("cam", path)
        with pytest.raises(InputError):
            camtools.datasets.COCO(path)
    with pytest.raises(InputError):
        camtools.datasets.BoxFolder(tmp_path, csv=pipe)
    with pytest.raises(WeightsError):
        camtools.ContextBank.load(pipe)


def test_names_are_shortened_by_bytes_and_stay_apart():
    assert shortened("a" * 200) == "a" * 200
    long, other = "é" * 150, "é" * 149 + "e"
    short = shortened(long)
    assert short == "é" * 93 + short[-13:] and len(short.encode()) == 199 and short != shortened(other)
    assert shortened(long) == short
    assert len(os.fsencode(shortened("\udcff" * 300))) <= 200


def test_long_names_of_classes_and_images_are_no_error(tmp_path, model):
    names = ["长" * 300, "长" * 299 + "短", "c", "d", "e"]
    explanations = camtools.Explainer(model, class_names=names)(IMAGE, target=[0, 1])
    folders = [class_folder(explanation) for explanation in explanations]
    assert len(set(folders)) == 2 and all(len(name.encode()) <= 200 for name in folders)
    explanations[0].save(tmp_path / folders[0])
    place = tmp_path / "images"
    place.mkdir()
    for suffix in (".png", ".jpg"):
        Image.new("RGB", (8, 8)).save(place / f"{'n' * 250}{suffix}")
    jobs = [job.folder for job in find_jobs([str(place)])]
    assert len(set(jobs)) == 2 and all(len(name.encode()) <= 205 for name in jobs)


def test_a_place_that_cannot_be_written_is_found_out_at_the_start(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path / "a.png", folder=False)
    assert not list(tmp_path.iterdir())  # nothing is left
    (tmp_path / "file").touch()
    for bad, words in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(InputError, match=rf"cannot be written: {words}.*--out"):
            check_writable(bad)
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path, folder=False)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        check_writable(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder in which nobody may write")  # noqa: PTH112
@pytest.mark.parametrize(
    "command",
    [
        ["explain", "IMAGE", "--model", "nobody/knows"],
        ["segment", "IMAGE", "--model", "nobody/knows"],
        ["evaluate", "--data", "nothing:there", "--model", "nobody/knows"],
        ["finetune", "gap", "--data", "nothing:there", "--model", "nobody/knows"],
        ["reproduce", "scenes"],
        ["demo"],
    ],
)
def test_every_command_says_so_before_it_looks_at_model_or_data(command):
    from typer.testing import CliRunner

    from camtools.cli import app

    result = CliRunner().invoke(app, [*command, "--out", "/proc/out"])
    assert result.exit_code == 2 and result.stderr.startswith("Error: /proc/out cannot be written")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("target", [torch.zeros((), dtype=torch.long, device="meta"), torch.zeros(2).to_sparse()])
def test_targets_that_are_tensors_without_values(model, target):
    with pytest.raises(TargetError, match="targets are a tensor without plain values"):
        camtools.explain(model, Image.new("RGB", (8, 8)), target=target)
    with pytest.raises(TargetError, match="A class is an index or a name, not tensor"):
        camtools.explain(model, Image.new("RGB", (8, 8)), target=[torch.zeros((), device="meta")])


def test_steps_and_pipelines_of_odd_values():
    for bias in (0, "text", torch.zeros(())):
        with pytest.raises(PipelineError, match="bias must be finite numbers"):
            Sigmoid(bias)
    with pytest.raises(PipelineError, match="A pipeline is made of steps"):
        Pipeline(torch.zeros(()))
    with pytest.raises(PipelineError, match="percentile must be a number"):
        PaS(10**400)


@pytest.mark.parametrize("path", [5, None, ["bank"], b"bank"], ids=["number", "none", "list", "bytes"])
def test_what_is_no_path_is_named(path):
    calls = (
        (lambda: camtools.Explanation.load(path), "directory", InputError),
        (lambda: camtools.EvaluationResult.load(path), "folder", InputError),
        (lambda: camtools.ContextBank.load(path), "path", WeightsError),
        (lambda: read_checkpoint(path), "path", WeightsError),
        (lambda: load_names(path), "path", TargetError),
    )
    for call, name, error in calls:
        with pytest.raises(error, match=re.escape(f"{name}={path!r}: expected a path")):
            call()
