"""Settings: types, ranges, text, and what a mistake is told."""

from dataclasses import dataclass

import pytest

from camtools.errors import InputError
from camtools.training import TrainConfig, option
from camtools.training.config import describe


@dataclass(frozen=True, kw_only=True)
class Own(TrainConfig):
    theta: float = option(0.1, "A share.", source="A paper, eq. 3", least=0, most=1)
    lr: float = option(0.5, "Its own rate.", least=0)


def test_text_is_read_as_the_fields_type():
    config = Own.of(
        {
            "epochs": "3",
            "lr": "1e-2",
            "freeze_bn": "yes",
            "augment": "flip, has",
            "output_stride": "none",
            "schedule": "step",
            "input_size": "96",
            "theta": "1",
        }
    )
    assert (config.epochs, config.lr, config.freeze_bn, config.augment) == (3, 0.01, True, ("flip", "has"))
    assert (config.output_stride, config.schedule, config.input_size) == (None, "step", 96)
    assert config.theta == 1.0 and isinstance(config.theta, float)
    assert Own.of({"augment": "none"}).augment == () and Own.of({"augment": []}).augment == ()
    assert Own().lr == 0.5 and TrainConfig().lr == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "there is no setting 'epoch'; did you mean 'epochs'\\? Expected one of .*theta"),
        ({"epochs": "many"}, "epochs='many': expected a whole number of at least 1"),
        ({"epochs": 0}, "epochs=0: expected a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs=2.5: expected a whole number"),
        ({"epochs": True}, "epochs=True: expected a whole number"),
        ({"lr": float("nan")}, "lr=nan: expected a number of at least 0"),
        ({"theta": "1.5"}, "theta=1.5: expected a number of at least 0 and at most 1. A share."),
        ({"schedule": "cosin"}, "schedule='cosin': expected one of cosine, step, constant"),
        ({"output_stride": 4}, "output_stride=4: expected one of 8, 16, 32, or none"),
        ({"freeze_bn": "maybe"}, "freeze_bn='maybe': expected true or false"),
        (
            {"augment": "flop"},
            "augment=\\('flop',\\): expected any of crop, resized_crop, flip, vflip, colour, has",
        ),
        ({"augment": "crop,resized_crop"}, "crop or resized_crop, not both"),
        ({"augment": "flip,flip"}, "expected each once"),
    ],
)
def test_mistakes_name_the_setting_and_what_is_allowed(options, message):
    with pytest.raises(InputError, match=message):
        Own.of(options)


def test_what_does_not_affect_the_weights_may_differ():
    assert Own(workers=3, log_every=1, save_every=7).affecting() == Own().affecting()
    assert Own(theta=0.2).affecting() != Own().affecting()
    assert Own().to_dict()["augment"] == ["crop", "flip"]


def test_settings_are_described_with_source_own_ones_first():
    rows = describe(Own)
    assert rows[0] == ("theta", "0.1", "A share. [A paper, eq. 3]")
    assert {name: default for name, default, _ in rows}["augment"] == "crop,flip"
    assert all(words for _, _, words in rows)
