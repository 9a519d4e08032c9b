import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import camtools
from camtools.checkpoints import weights_hash
from camtools.context_bank import ContextBank
from camtools.datasets import Record, RecordDataset
from camtools.errors import InputError, PipelineError, TargetError, WeightsError
from camtools.model.adapter import FeatureSpec
from camtools.steps import CREAM


class Noise(RecordDataset):
    """Random images whose classes are given, in the order given."""

    def __init__(self, labels, order=None, classes=("ant", "bee", "cat")):
        super().__init__()
        self.classes, self.labels = classes, labels
        self.order = range(len(labels)) if order is None else order

    def __len__(self):
        return len(self.labels)

    def record(self, index):
        number = self.order[index]
        pixels = np.random.default_rng(number).integers(0, 256, (32, 24, 3), dtype=np.uint8)
        labels = torch.tensor(self.labels[number], dtype=torch.int64)
        return Record(Image.fromarray(pixels), labels, torch.zeros(0, 4), None, None, str(number))


LABELS = [[0], [2], [0], [0, 2], [2], [0], [], [0, 0]]


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.4


def fit(model, data, **settings):
    return ContextBank.fit(model, data, transform=to_tensor, progress=False, **settings)


@pytest.fixture
def sighted(make_tiny):
    """A classifier whose maps have both signs."""
    model = make_tiny()
    with torch.no_grad():
        model.fc.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(5)))
        model.conv.bias.fill_(0.2)
    return model


def by_hand(model, data, momentum=None, delta=0.2):
    """Eq. 3-4, an image after the other, in float64: vectors (2, K, C) and counts (K, 2)."""
    vectors, counts = np.zeros((2, 3, 4)), np.zeros((3, 2), dtype=int)
    for index in range(len(data)):
        record = data.record(index)
        with torch.no_grad():
            f = model.relu(model.conv(to_tensor(record.image)[None]))[0].double().numpy()
        for label in record.classes:
            cam = np.einsum("c,chw->hw", model.fc.weight[label].detach().double().numpy(), f)
            inside = (cam > delta * cam.max()) & (cam.max() > 0)
            for part, mask in enumerate((inside, ~inside)):
                if not mask.any():
                    continue
                mean, n = f[:, mask].mean(1), counts[label, part]
                share = 1 / (n + 1) if momentum is None else 1.0 if n == 0 else 1 - momentum
                vectors[part, label] = (1 - share) * vectors[part, label] + share * mean
                counts[label, part] += 1
    return vectors, counts


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize(
    ("mode", "momentum"), [("momentum", 0.8), ("momentum", 0.0), ("momentum", 0.99), ("mean", 0.8)]
)
def test_equals_the_equations_one_image_after_the_other(sighted, mode, momentum, batch_size):
    bank = fit(sighted, Noise(LABELS), mode=mode, momentum=momentum, batch_size=batch_size)
    vectors, counts = by_hand(sighted, Noise(LABELS), momentum if mode == "momentum" else None)
    np.testing.assert_allclose(bank.foreground.numpy(), vectors[0], atol=1e-6)
    np.testing.assert_allclose(bank.background.numpy(), vectors[1], atol=1e-6)
    assert bank.counts.tolist() == counts.tolist()
    assert bank.foreground.dtype == torch.float32


def test_mean_does_not_depend_on_the_order_and_momentum_does(sighted):
    order = [5, 3, 7, 1, 6, 0, 4, 2]
    for mode, same in (("mean", True), ("momentum", False)):
        one = fit(sighted, Noise(LABELS), mode=mode, batch_size=3)
        other = fit(sighted, Noise(LABELS, order), mode=mode, batch_size=3)
        assert one.foreground.allclose(other.foreground, atol=1e-6) == same
        assert one.background.allclose(other.background, atol=1e-6) == same


def test_classes_without_an_image_are_reported(sighted):
    bank = fit(sighted, Noise(LABELS))
    assert bank.missing == [1] and bank.known.tolist() == [True, False, True]
    assert bank.foreground[1].eq(0).all()
    assert repr(bank).startswith("ContextBank(3 classes x 4 channels, 1 missing, momentum, ")
    fg, bg, known = bank.vectors(torch.tensor([[2, 1]]))
    assert fg[0, 0].equal(bank.foreground[2]) and bg[0, 0].equal(bank.background[2])
    assert known.tolist() == [[True, False]]


def test_a_map_that_is_nowhere_positive_gives_no_foreground(make_tiny):
    model = make_tiny()
    with torch.no_grad():
        model.fc.weight.fill_(-1.0)
    bank = fit(model, Noise([[0], [1], [2]]))
    assert bank.counts.tolist() == [[0, 1]] * 3 and bank.missing == [0, 1, 2]


def test_fit_leaves_the_model_as_it_was(sighted):
    sighted.train()
    before = weights_hash(sighted)
    fit(sighted, Noise(LABELS))
    assert sighted.training and weights_hash(sighted) == before
    assert all(p.grad is None for p in sighted.parameters()) and not sighted.conv._forward_hooks


def test_linearised_heads(make_tiny):
    tiny = make_tiny()
    tiny.fc = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    bank = fit(camtools.wrap(tiny, spec=FeatureSpec("relu")), Noise(LABELS))
    assert bank.foreground.shape == (3, 4) and bank.foreground.isfinite().all() and bank.layer == "relu"


def test_subset_is_what_it_names(sighted):
    part = torch.utils.data.Subset(Noise(LABELS), [4, 2])
    assert fit(sighted, part, mode="mean").counts.sum(0).max() <= 2


def test_save_and_load(sighted, tmp_path):
    bank = fit(sighted, Noise(LABELS), mode="mean", delta=0.3)
    bank.save(tmp_path / "bank.safetensors")
    again = ContextBank.load(tmp_path / "bank.safetensors", sighted)
    assert repr(again) == repr(bank)
    for name in ("foreground", "background", "counts"):
        assert getattr(again, name).equal(getattr(bank, name))
    for name in ("layer", "side", "model", "weights", "mode", "momentum", "delta"):
        assert getattr(again, name) == getattr(bank, name)
    assert (again.model, again.mode, again.delta) == ("TinyNet", "mean", 0.3)


def test_a_bank_of_another_model_is_refused(sighted, make_tiny, tmp_path):
    path = tmp_path / "bank.safetensors"
    fit(sighted, Noise(LABELS)).save(path)
    with pytest.raises(WeightsError, match="does not fit TinyNet: feature channels 4 in the bank, 5 in the model"):
        ContextBank.load(path, make_tiny(channels=5))
    with pytest.raises(WeightsError, match="does not fit TinyNet: classes 3 in the bank, 7 in the model"):
        ContextBank.load(path, make_tiny(num_classes=7))
    with pytest.raises(WeightsError, match=r"does not fit TinyNet: layer .*'conv'"):
        ContextBank.load(path, camtools.wrap(sighted, spec=FeatureSpec("conv")))
    with pytest.raises(WeightsError, match=r"does not fit TinyNet: weights .* in the bank"):
        ContextBank.load(path, make_tiny())
    assert ContextBank.load(path).foreground.shape == (3, 4)


def test_files_that_are_no_bank_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"There is no file .*none\.safetensors"):
        ContextBank.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("not a bank")
    with pytest.raises(WeightsError, match="is no safetensors file"):
        ContextBank.load(tmp_path / "text")
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "other"))
    with pytest.raises(WeightsError, match="is no context bank"):
        ContextBank.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "median"}, "mode='median': expected 'momentum' or 'mean'"),
        ({"momentum": 1.0}, "momentum=1.0: expected a number, 0 <= momentum < 1"),
        ({"momentum": math.nan}, "momentum=nan: expected a number"),
        ({"momentum": "0.8"}, "momentum='0.8': expected a number"),
        ({"delta": -0.2}, "delta=-0.2: expected a number, 0 <= delta < 1"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(tiny, settings, message):
    with pytest.raises(InputError) as error:
        fit(tiny, Noise(LABELS), **settings)
    assert message in str(error.value)


def test_data_that_does_not_fit_is_refused(tiny):
    with pytest.raises(TargetError, match="The data has 2 classes"):
        fit(tiny, Noise([[0], [1]], classes=("ant", "bee")))
    with pytest.raises(InputError, match="no image gave a foreground or background"):
        fit(tiny, Noise([[], []]))
    with pytest.raises(InputError, match="cannot be evaluated on"):
        fit(tiny, [1, 2])


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"foreground \(2, 3\), background \(2, 4\), counts \(2, 2\): expected"):
        ContextBank(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 2))


def test_two_banks_never_read_the_same(sighted):
    one, other = fit(sighted, Noise(LABELS)), fit(sighted, Noise(LABELS), momentum=0.5)
    assert repr(one) != repr(other) and repr(CREAM(one)) != repr(CREAM(other))


def test_unknown_class_is_named(sighted):
    with pytest.raises(PipelineError, match=r"class 3 is not in ContextBank\(.*expected 0 to 2"):
        fit(sighted, Noise(LABELS)).vectors(torch.tensor([[0, 3]]))
