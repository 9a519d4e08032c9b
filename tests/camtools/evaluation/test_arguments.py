"""What `evaluate` refuses before the first image, and what it lists afterwards."""

import pytest

import camtools
from camtools.errors import InputError, ModelError, PipelineError, TargetError

BIRDS = ("sparrow", "crow", "gull")


def test_refused_before_the_first_image(model, images, options):
    (images / "000.png").unlink()  # nobody may miss it
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(TargetError, match="'blue', 'green', 'red'"):
        camtools.evaluate(model, f"boxfolder:{images}", **{**options, "class_names": BIRDS})
    assert len(seen) <= 3  # what it takes to find the features and to count the classes


def test_names_decide_and_are_recorded(model, images, options):
    result = camtools.evaluate(model, f"boxfolder:{images}", **options)  # the data's are in alphabetical order
    assert result.settings["classes"] == "by name"
    assert result.rows.labels[:3].tolist() == [0, 1, 2]
    assert result.rows.names[:3] == ["red", "green", "blue"]
    assert result.rows.rank[0] == 0  # with the data's own indices, blue's logit would be asked for


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"pipeline": "camm"}, PipelineError, "Did you mean 'cam'"),
        ({"pipeline": []}, PipelineError, "No pipeline is given"),
        ({"pipeline": "cam,cam"}, PipelineError, "two pipelines 'cam'"),
        ({"pipeline": 3}, PipelineError, "pipeline=3: expected a preset's name"),
        ({"protocol": "imagenet"}, InputError, "protocol='imagenet': expected 'wsol' or 'native'"),
        ({"transform": lambda image: image}, InputError, "needs the model's mean and std"),
        ({"metrics": ["MaxBox"]}, InputError, "expected some of MaxBoxAcc, MaxBoxAccV2"),
        ({"metrics": []}, InputError, "expected some of MaxBoxAcc"),
        ({"metrics": "PxAP"}, InputError, "no truth for PxAP"),
        ({"batch_size": 0}, InputError, "batch_size=0: expected a whole number of at least 1"),
        ({"workers": 1.5}, InputError, "workers=1.5: expected a whole number of at least 1"),
        ({"limit": 0}, InputError, "limit=0: expected a whole number"),
        ({"every": -1}, InputError, "every=-1: expected a whole number"),
        ({"skip": -1}, InputError, "skip=-1: expected a whole number of at least 0"),
        ({"skip": 10**6}, InputError, "leaves no image to evaluate"),
        ({"activation": "tanh"}, InputError, "activation='tanh': expected 'softmax' or 'sigmoid'"),
        ({"scoremaps": "x"}, InputError, "got both model and scoremaps: expected one"),
        ({"device": "nowhere"}, InputError, "device='nowhere' cannot be used"),
        ({"class_names": "red"}, TargetError, "expected a list of one name per class"),
        ({"calibrate": "boxfolder:nowhere"}, InputError, "nowhere"),
        ({"bootstrap": -1}, InputError, "bootstrap=-1"),
    ],
)
def test_wrong_arguments(model, images, options, given, error, words):
    with pytest.raises(error) as caught:
        camtools.evaluate(model, f"boxfolder:{images}", **{**options, **given})
    assert words in str(caught.value)


def test_wrong_data(model, images, options):
    from torch.utils.data import Subset

    from camtools.datasets import BoxFolder

    data = BoxFolder(images)
    for given, words in (
        ([1, 2], "cannot be evaluated on: expected a camtools data set of records"),
        (BoxFolder(images, target="label"), "with target='label' cannot be evaluated on"),
        (Subset(data, []), "leaves no image to evaluate"),
        (Subset(data, [1, 1]), "names an image twice"),
        ("birds", "is no data set"),
    ):
        with pytest.raises(InputError) as caught:
            camtools.evaluate(model, given, **options)
        assert words in str(caught.value)


def test_neither_model_nor_maps(images):
    with pytest.raises(InputError, match="got neither model nor scoremaps: expected one"):
        camtools.evaluate(None, f"boxfolder:{images}")


def test_a_model_that_cannot_take_the_input(model, images, options):
    model.conv.weight.data = model.conv.weight.data[:, :1]
    with pytest.raises(ModelError, match=r"Colours cannot be run on an input of shape \(1, 3, 224, 224\)"):
        camtools.evaluate(model, f"boxfolder:{images}", **options)


def test_scores_that_are_no_numbers(model, images, options):
    model.fc.bias.data += float("nan")
    with pytest.raises(ModelError, match="NaN or infinite class scores"):
        camtools.evaluate(model, f"boxfolder:{images}", **options)


def test_boxes_outside_the_image_are_listed(model, images, options):
    table = images.with_suffix(".csv")
    lines = table.read_text().splitlines()
    fields = lines[3].split(",")
    fields[4] = "112.6"  # rounding: cut off
    lines[3] = ",".join(fields)
    fields = lines[4].split(",")
    fields[4] = "140"
    lines[4] = ",".join(fields)
    table.write_text("\n".join(lines) + "\n")
    result = camtools.evaluate(model, f"boxfolder:{images}", **options)
    assert [name for name, _ in result.failed] == ["deep/003.png"]
    assert "is 112 x 112 pixels: expected boxes inside the image" in result.failed[0][1]
    assert result.rows.truth[2][0, 2] == 112
