"""Settings of a fine-tune: typed, with their ranges, read from keyword arguments or from text."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from camtools.checks import literal
from camtools.errors import InputError
from camtools.evaluation.statistics import metric_name

AUGMENTATIONS = ("crop", "resized_crop", "flip", "vflip", "colour", "has", "cutmix")


def option(
    default: Any,
    help: str,
    *,
    source: str = "",
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[Any] | None = None,
    affects: bool = True,
) -> Any:
    """Declare a field of a `TrainConfig`.

    Args:
        default: Its default.
        help: What it is.
        source: Where the default comes from: paper, equation, code.
        least: Smallest value.
        most: Largest value.
        choices: The values there are; of a tuple's elements.
        affects: Whether the trained weights depend on it; a run may be resumed with another value where they don't.
    """
    rules = {"help": help, "source": source, "least": least, "most": most, "choices": choices, "affects": affects}
    return dataclasses.field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings that all recipes share. A recipe's own `Config` derives from it, adds fields and may change defaults.

    Values are checked when it is made; see the fields' `metadata` for ranges, help and sources.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    epochs: int = option(10, "Passes over the training images.", least=1)
    batch_size: int = option(32, "Images per step and process.", least=1)
    optimizer: str = option("sgd", "What makes steps of gradients.", choices=("sgd", "adamw"))
    lr: float = option(1e-3, "Learning rate of the backbone.", least=0)
    head_lr_factor: float = option(
        10.0, "The classifier's rate, in multiples of it.", source="wsolevaluation, MinMaxCAM", least=0
    )
    fast_layers: tuple[str, ...] = option(
        (),
        "Other layers with a rate of their own: REGEX=FACTOR, the expression is searched in parameters' names; "
        "'layer4\\.=10' is wsolevaluation's for ResNet-50.",
    )
    momentum: float = option(0.9, "Of SGD; Nesterov's, unless 0.", source="wsolevaluation", least=0, most=1)
    weight_decay: float = option(5e-4, "Of all weights.", source="MinMaxCAM", least=0)
    clip_grad: float = option(0.0, "Largest norm of the gradients; 0: any.", least=0)
    schedule: str = option(
        "cosine", "How the rate falls: along a cosine to 0, in steps, or not.", choices=("cosine", "step", "constant")
    )
    step_epochs: int = option(15, "Epochs between the steps of schedule=step.", source="wsolevaluation", least=1)
    step_gamma: float = option(0.1, "Factor of each such step.", source="wsolevaluation", least=0, most=1)
    warmup: float = option(0.0, "Epochs in which the rate rises from 0.", least=0)
    label_smoothing: float = option(0.0, "Share of the truth given to all classes alike.", least=0, most=0.999)
    ema: float = option(
        0.0, "Decay of the weights' moving average, which then is the result; 0: none.", least=0, most=1
    )
    freeze_bn: bool = option(False, "Whether batch normalisation keeps its statistics.")
    freeze: str | None = option(
        None, "Name of a layer up to which the network stays as it is, weights and statistics; none: all of it learns."
    )
    views: int = option(
        0,
        "Augmented versions that there are of each image, of which an epoch takes one at random; 0: new ones every "
        "epoch. With freeze, the frozen part runs once for each of them.",
        least=0,
    )
    cache: str | None = option(
        "",
        "Folder where the outputs of a frozen part are kept in half precision, for any number of runs with the same "
        "views; empty: in the run's own; none: the frozen part runs at every step.",
        affects=False,
    )
    output_stride: int | None = option(
        None, "Pixels between positions of the feature map: the last stages keep their resolution.", choices=(8, 16, 32)
    )
    dilate: bool = option(
        True, "Whether output_stride dilates kernels; false drops strides alone, as wsolevaluation and MinMaxCAM do."
    )
    cut_after: str | None = option(
        None, "Name of the layer behind which the network ends, with a fresh classifier; none: all of it."
    )
    conv: int | None = option(
        None,
        "Channels of a fresh 3 x 3 convolution and ReLU before the pooling, with a fresh classifier; none or 0: none, "
        "but none puts 1024 into models whose own head cannot be kept (VGG16).",
        source="RCAM's, MinMaxCAM's and wsolevaluation's VGG16 have 1024",
        least=0,
    )
    input_size: int | None = option(None, "Side of the input in pixels; None: the model's own.", least=16)
    resize: int | None = option(
        None, "Side to which images are squashed before a crop; None: 8/7 of the input.", source="wsolevaluation"
    )
    augment: tuple[str, ...] = option(
        ("crop", "flip"),
        "crop: a random square of the resized image; resized_crop: of random size; flip, and vflip upside down; "
        "colour: brightness, contrast and saturation; has: Hide-and-Seek (Singh and Lee, ICCV 2017); cutmix (Yun et "
        "al., ICCV 2019).",
        choices=AUGMENTATIONS,
    )
    crop_scale: float = option(0.25, "Least share of the area that resized_crop keeps.", least=0.01, most=1)
    has_grid: int = option(4, "Cells per side of Hide-and-Seek's grid.", source="Singh and Lee, ICCV 2017", least=1)
    has_cell: int | None = option(
        None, "Side of its cells in pixels, instead of has_grid; 32 is HaS-32.", source="wsolevaluation", least=1
    )
    has_drop: float = option(0.5, "Share of cells it hides.", source="Singh and Lee, ICCV 2017", least=0, most=1)
    cutmix_alpha: float = option(1.0, "Of CutMix's Beta distribution.", source="Yun et al., ICCV 2019", least=1e-3)
    seed: int = option(0, "Of everything random.", least=0)
    mixed_precision: str = option(
        "auto",
        "Type of the forward's numbers; auto: bf16 on a CPU that computes in it, no (float32) elsewhere.",
        choices=("auto", "no", "bf16", "fp16"),
    )
    accumulate: int = option(1, "Batches whose gradients make one step.", least=1)
    compile: bool = option(False, "Whether torch.compile makes the model faster.")
    workers: int | None = option(
        None, "Processes that read images; None: up to 8 with a GPU, else none.", least=0, affects=False
    )
    log_every: int = option(20, "Steps between entries in the log, and looks at the loss.", least=1, affects=False)
    save_every: int = option(
        0, "Steps between checkpoints within an epoch; 0: only after each.", least=0, affects=False
    )
    best: str = option(
        "accuracy",
        "Which epoch's model is the result: that of the best validation accuracy, of the lowest training loss, the "
        "last, or that of the best metric of camtools.evaluate, such as MaxBoxAccV2, which looks at the validation "
        "set's boxes. Without a validation set accuracy means last.",
    )
    protocol: str = option("native", "Of the validation, see camtools.evaluate.", choices=("native", "wsol"))
    validate_every: int = option(1, "Epochs between validations; the last epoch always has one.", least=1)
    val_limit: int | None = option(None, "Validation images; None: all.", least=1)
    examples: int = option(6, "Validation images drawn before and after.", least=0, affects=False)

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        if isinstance(self.best, str):
            object.__setattr__(self, "best", metric_name(self.best))
        for setting in dataclasses.fields(self):
            value = _checked(setting, kinds[setting.name], getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)
        both = {"crop", "resized_crop"} <= set(self.augment)
        if both or len(set(self.augment)) < len(self.augment):
            raise InputError(f"augment={self.augment!r}: expected each once, and crop or resized_crop, not both")
        self.layer_factors()

    def layer_factors(self) -> list[tuple[re.Pattern[str], float]]:
        """Return `fast_layers` as expressions and their factors.

        Raises:
            InputError: An entry is no REGEX=FACTOR.
        """
        pairs = []
        for entry in self.fast_layers:
            expression, _, factor = str(entry).rpartition("=")
            try:
                pairs.append((re.compile(expression), float(factor)))
            except (re.error, ValueError) as error:
                raise InputError(
                    f"fast_layers has {entry!r}: expected REGEX=FACTOR, such as 'layer4=10' ({error})"
                ) from error
            if not expression or not 0 <= pairs[-1][1] < math.inf:
                raise InputError(f"fast_layers has {entry!r}: expected REGEX=FACTOR with a finite factor of at least 0")
        return pairs

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Make a config of settings by name; text is read as the field's type ("1e-3", "crop,flip", "none").

        Raises:
            InputError: A name is unknown (says which is closest), or a value has the wrong type or is out of range.
        """
        kinds = typing.get_type_hints(cls)
        known = [setting.name for setting in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise InputError(f"there is no setting {name!r}{hint} Expected one of {', '.join(known)}")
            values[name] = _read(value, kinds[name]) if isinstance(value, str) else value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, as JSON keeps them."""
        settings = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    def affecting(self) -> dict[str, Any]:
        """Return the settings on which the weights depend, as JSON keeps them."""
        kept = {setting.name for setting in dataclasses.fields(self) if setting.metadata.get("affects", True)}
        return {name: value for name, value in self.to_dict().items() if name in kept}


def describe(config: type[TrainConfig]) -> list[tuple[str, str, str]]:
    """Return (name, default, help) of every setting, the recipe's own first."""
    shared = {setting.name for setting in dataclasses.fields(TrainConfig)}
    rows = []
    for setting in sorted(dataclasses.fields(config), key=lambda setting: setting.name in shared):
        text, source = setting.metadata.get("help", ""), setting.metadata.get("source", "")
        default = ",".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
        rows.append((setting.name, default.lower(), f"{text} [{source}]" if source else text))
    return rows


def _kinds(kind: Any) -> tuple[type, ...]:
    """Return the types that a field's annotation admits; tuple[str, ...] counts as tuple."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return tuple(typing.get_origin(part) or part for part in parts)


def _read(text: str, kind: Any) -> Any:
    """Read a value; what cannot be read stays text, which the check of its type then rejects."""
    kinds = _kinds(kind)
    plain = text.strip()
    if plain.lower() == "none" and type(None) in kinds:
        return None
    if tuple in kinds:
        return tuple(part.strip() for part in plain.split(",") if part.strip() and plain.lower() != "none")
    if bool in kinds:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(plain.lower(), text)
    if str in kinds:
        return plain
    return literal(plain)


def _checked(setting: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """Return a field's value in its type."""
    kinds, rules = _kinds(kind), setting.metadata
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        value = float(value)
    if isinstance(value, list) and tuple in kinds:
        value = tuple(value)
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if not wrong and value is not None:
        each = value if isinstance(value, tuple) else (value,)
        choices, least, most = rules.get("choices"), rules.get("least"), rules.get("most")
        wrong = any(
            (choices is not None and item not in choices)
            or (isinstance(item, float) and not math.isfinite(item))
            or (least is not None and item < least)
            or (most is not None and item > most)
            for item in each
        )
    if wrong:
        raise InputError(
            f"{setting.name}={value!r}: expected {_wanted(kinds, rules)}. {rules.get('help', '')}".rstrip()
        )
    return value


def _wanted(kinds: tuple[type, ...], rules: Mapping[str, Any]) -> str:
    """Return what a setting takes, in words."""
    least, most, choices = rules.get("least"), rules.get("most"), rules.get("choices")
    if choices is not None:
        text = ("any of " if tuple in kinds else "one of ") + ", ".join(map(str, choices))
    else:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a tuple"}
        text = " or ".join(names[kind] for kind in kinds if kind in names)
        text += "" if least is None else f" of at least {least:g}"
        text += "" if most is None else f" and at most {most:g}" if least is not None else f" of at most {most:g}"
    return text + (", or none" if type(None) in kinds else "")
