"""`cream_regressor` and `BoxRegressor`: boxes by hand, what is learnt, files, and `explain` with two networks."""

import pytest
import torch
from PIL import Image
from torch import nn

import camtools
from camtools.context_bank import ContextBank
from camtools.datasets import Record
from camtools.datasets.base import ListedDataset
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, WeightsError
from camtools.heads import BoxRegressor
from camtools.heads.box_regressor import whole_pixels
from camtools.images.preprocess import Preprocess
from camtools.steps import CREAM
from camtools_recipes.cream_regressor import CreamRegressorConfig, CreamRegressorRecipe, box_ious

SIDE = 32
RUN = {"progress": False, "device": "cpu"}


class Squares(ListedDataset):
    """A white square on black, of one of four sizes; its box is the truth."""

    def __init__(self, count=32, moved=False, blank=False):
        super().__init__((f"{i:03d}" for i in range(count)), ("square", "nothing"), None, "record")
        self.moved, self.blank = moved, blank

    def labels_of(self, index):
        return [0]

    def box(self, index):
        random = torch.Generator().manual_seed(index)
        side = int(torch.randint(2, 5, (), generator=random)) * 4
        x, y = (int(torch.randint(0, (SIDE - side) // 4 + 1, (), generator=random)) * 4 for _ in range(2))
        return [x, y, x + side, y + side]

    def record(self, index):
        x0, y0, x1, y1 = self.box(index)
        pixels = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
        pixels[y0:y1, x0:x1] = 0 if self.blank else 255
        return Record(
            image=Image.fromarray(pixels.numpy()),
            labels=torch.tensor([0]),
            boxes=torch.tensor([[0.0, 0, 1, 1] if self.moved else [x0, y0, x1, y1]]).float(),
            masks=None,
            ignore=None,
            id=self.ids[index],
        )


class Bright(nn.Module):
    """Class 0 is brightness, class 1 its opposite; F has the four corners' directions besides, for boxes."""

    preprocess = Preprocess(input_size=(SIDE, SIDE), resize=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    class_names = ("square", "nothing")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        self.near = nn.Conv2d(1, 24, 7, padding=3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(25, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 48)
            self.fc.weight.zero_()
            self.fc.bias.zero_()
            self.fc.weight[:, 0] = torch.tensor([1.0, -1.0])

    def forward(self, x):
        bright = self.conv(x)
        return self.fc(self.pool(torch.cat([bright, self.near(bright).relu()], 1)).flatten(1))


@pytest.fixture
def bright():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Bright().eval()


def config(**options):
    return {"maps": "FixedThreshold(0.5)", "batch_size": 8, "lr": 0.02, "head_lr_factor": 1.0, **options}


def test_whole_pixels_by_hand():
    boxes = torch.tensor([[-2.0, 1.4, 3.6, 9.0], [7.9, 2.0, 8.3, 2.2]])
    assert whole_pixels(boxes, (6, 8)).tolist() == [[0, 1, 4, 6], [7, 2, 8, 3]]


def test_pseudo_boxes_are_those_of_the_maps_and_the_truth_plays_no_part(bright, monkeypatch):
    seen = {}
    original = CreamRegressorRecipe.before_training

    def watch(self, trainer):
        original(self, trainer)
        seen.setdefault("boxes", []).append(self._boxes)

    monkeypatch.setattr(CreamRegressorRecipe, "before_training", watch)
    results = [
        camtools.finetune("cream_regressor", bright, Squares(16, moved=moved), epochs=1, **config(), **RUN)
        for moved in (False, True)
    ]
    # Squares lie on the grid of cells; a bilinear map is above one half exactly within them.
    expected = torch.tensor([Squares().box(i) for i in range(16)]) / SIDE
    torch.testing.assert_close(seen["boxes"][0], expected)
    pairs = zip(*(one.model.parameters() for one in results), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_boxes_of_what_images_share(monkeypatch):
    """DDT needs no class of the model's: squares stand out of every image."""
    seen = {}
    original = CreamRegressorRecipe.before_training

    def watch(self, trainer):
        original(self, trainer)
        seen["boxes"] = self._boxes

    monkeypatch.setattr(CreamRegressorRecipe, "before_training", watch)
    foreign = Bright()
    foreign.near.weight.data.zero_()
    foreign.near.bias.data.zero_()
    foreign.fc, foreign.class_names = nn.Linear(25, 4), ("w", "x", "y", "z")  # other classes than the data's
    run = {**config(maps="ddt"), **RUN}
    camtools.finetune("cream_regressor", foreign.eval(), Squares(16), epochs=1, **run)
    expected = torch.tensor([Squares().box(i) for i in range(16)]) / SIDE
    out = (seen["boxes"] - expected) * torch.tensor([-1, -1, 1, 1]) * SIDE
    assert out.min() > -0.01 and out.max() <= 4  # the square, and less than a cell of 4 pixels around it


def test_the_teacher_draws_at_a_size_of_its_own(bright, monkeypatch):
    """A square of 8 x 8 of 32 pixels is 2 x 2 cells; at 64 it is 4 x 4, and a bilinear map ends where it does."""
    sizes, original = [], Bright.forward
    monkeypatch.setattr(Bright, "forward", lambda self, x: (sizes.append(tuple(x.shape[2:])), original(self, x))[1])
    drawn = {}
    before = CreamRegressorRecipe.before_training
    monkeypatch.setattr(
        CreamRegressorRecipe, "before_training", lambda self, t: (before(self, t), drawn.update(boxes=self._boxes))
    )
    options = {**config(teacher_size=64, input_size=32), **RUN}
    camtools.finetune("cream_regressor", bright, Squares(16), epochs=1, **options)
    expected = torch.tensor([Squares().box(i) for i in range(16)]) / SIDE
    assert (64, 64) in sizes and (drawn["boxes"] - expected).abs().max() <= 1 / 64


def test_a_hidden_layer_and_sides_in_place_of_corners(tmp_path):
    """As PSOL's code has them: 1 -> hidden -> x0, y0, width, height."""
    regressor = BoxRegressor.of(Fixed().eval(), hidden=3, form="xywh")
    head = regressor.network.head
    with torch.no_grad():
        head.first.weight.fill_(-1.0)
        head.first.bias.copy_(torch.tensor([-1.0, 0.0, 2.0]))
        head.last.weight.zero_()
        head.last.weight[:, 2] = torch.tensor([0.5, 0.0, 0.0, 0.0])
        head.last.bias.copy_(torch.tensor([0.25, 0.5, 0.5, 0.75]).logit())
        head.last.bias[0] = torch.tensor(0.25).logit() - 1.0
    blank = torch.zeros(1, 3, 8, 16)  # hidden: 0, 0, 2; the last adds 0.5 * 2 to the first logit
    torch.testing.assert_close(regressor(blank), torch.tensor([[0.25, 0.5, 0.75, 1.25]]))
    found = regressor.boxes(Image.new("RGB", (40, 20)))
    torch.testing.assert_close(found, torch.tensor([10.0, 10, 30, 20]))  # within the image
    regressor.save(tmp_path / "r.safetensors")
    again = BoxRegressor.load(tmp_path / "r.safetensors", Fixed())
    assert again.network.outputs == "box xywh" and torch.equal(again(blank), regressor(blank))
    with pytest.raises(InputError, match=r"form='circle': expected 'corners' or 'xywh'"):
        BoxRegressor.of(Fixed(), form="circle")
    with pytest.raises(InputError, match=r"hidden=-1: expected a whole number of at least 0"):
        BoxRegressor.of(Fixed(), hidden=-1)


def test_it_learns_the_boxes(bright):
    data, val = Squares(48), Squares(40)
    options = config(epochs=60, optimizer="adamw", lr=0.03, weight_decay=0.0, validate_every=60)
    result = camtools.finetune("cream_regressor", bright, data, val, **options, **RUN)
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < 0.01 < result.history[1]["loss"]
    assert last["cream_regressor/GT-known@own"] > 75 > 25 > first["cream_regressor/GT-known@own"]
    ious = box_ious(result.model, val)
    assert last["cream_regressor/GT-known@own"] == pytest.approx(100 * float((ious >= 0.5).float().mean()))
    shares = [100 * float((ious >= at).float().mean()) for at in (0.3, 0.5, 0.7)]
    assert last["cream_regressor/MaxBoxAccV2"] == pytest.approx(sum(shares) / 3)
    assert result.best_epoch == 60


@pytest.mark.parametrize("best", ["GT-known@own", "MaxBoxAccV2", "loss"])
def test_the_best_epoch_is_that_of_its_own_metrics(bright, best):
    options = config(epochs=3, optimizer="adamw", lr=0.03, weight_decay=0.0, best=best)
    result = camtools.finetune("cream_regressor", bright, Squares(16), Squares(8), **options, **RUN)
    rows = [row for row in result.history if row["epoch"]]
    value = {row["epoch"]: -row["loss"] if best == "loss" else row[f"cream_regressor/{best}"] for row in rows}
    assert result.best_epoch == max(value, key=value.get)


def test_the_error_is_the_mean_square_over_images_with_a_box(bright):
    recipe = CreamRegressorRecipe(CreamRegressorConfig.of({"augment": "none"}))
    recipe._boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])

    class Told:
        @staticmethod
        def model(images):
            return torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3]])

        @staticmethod
        def boxes_of(batch, boxes):
            return boxes

    from camtools.training import Batch

    batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert float(recipe.loss(Told, batch)["loss"]) == pytest.approx((0.25 + 1) / 4)
    sides = CreamRegressorRecipe(CreamRegressorConfig.of({"augment": "none", "form": "xywh"}))
    sides._boxes = torch.tensor([[0.5, 0.0, 1.0, 1.0]]).repeat(2, 1)  # sides .5 and 1; learnt 1 and 0, and 0 and 0
    assert float(sides.loss(Told, batch)["loss"]) == pytest.approx((0.25 + 0 + 0.25 + 1 + 0.04 + 0.09 + 0.25 + 1) / 8)


class Fixed(nn.Module):
    """A classifier with one feature, the image's mean, for regressors that do not look."""

    preprocess = Preprocess(input_size=(8, 16), resize=(10, 20), mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 2, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1, 3)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 12)
            self.conv.bias.zero_()

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


def fixed(*shares):
    regressor = BoxRegressor.of(Fixed().eval())
    with torch.no_grad():
        regressor.network.classifier.weight.zero_()
        regressor.network.classifier.bias.copy_(torch.tensor(shares).logit())
    return regressor


def test_boxes_are_in_the_images_pixels_and_in_order():
    regressor = fixed(0.75, 0.5, 0.25, 0.25)  # corners the wrong way round
    assert regressor.preprocess.resize == (8, 16) and regressor.preprocess.crop_mode == "squash"
    images = [Image.new("RGB", size) for size in ((40, 20), (100, 60))]
    found = regressor.boxes(images)
    torch.testing.assert_close(found, torch.tensor([[10.0, 5, 30, 10], [25, 15, 75, 30]]))
    torch.testing.assert_close(regressor.boxes(images[0]), found[0])
    ready = torch.zeros(2, 3, 12, 24)
    torch.testing.assert_close(regressor.boxes(ready)[1], torch.tensor([6.0, 3, 18, 6]))
    assert not regressor.training or all(p.grad is None for p in regressor.parameters())


def test_explain_takes_the_class_from_one_and_the_box_from_the_other(bright):
    regressor, record = fixed(0.25, 0.5, 0.75, 1 - 1e-6), Squares()[0]
    plain = camtools.explain(bright, record.image)
    both = camtools.explain(bright, record.image, boxes_from=regressor)
    assert both.boxes.tolist() == [[8, 16, 24, 32]] and both.boxes.dtype == torch.int64
    assert both.label == plain.label and torch.equal(both.map, plain.map) and torch.equal(both.mask, plain.mask)
    several = camtools.explain(bright, [record.image] * 2, top_k=2, boxes_from=regressor)
    assert all(one.boxes.tolist() == [[8, 16, 24, 32]] for row in several for one in row)
    with pytest.raises(InputError, match=r"boxes_from=3: expected a camtools.heads.BoxRegressor, or None"):
        camtools.explain(bright, record.image, boxes_from=3)


def test_save_and_load(tmp_path, bright):
    regressor = fixed(0.1, 0.2, 0.3, 0.4)
    regressor.save(tmp_path / "r.safetensors")
    again = BoxRegressor.load(tmp_path / "r.safetensors", Fixed())
    assert not any(module.training for module in again.modules())
    image = Image.new("RGB", (50, 50))
    assert torch.equal(again.boxes(image), regressor.boxes(image)) and again.preprocess == regressor.preprocess
    camtools.heads.replace_head(bright, camtools.heads.GAP()).save(tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=r"c.safetensors holds a classifier: expected a box regressor"):
        BoxRegressor.load(tmp_path / "c.safetensors", bright)
    with pytest.raises(WeightsError, match=r"r.safetensors holds a box regressor, which knows no classes"):
        camtools.load_model(str(tmp_path / "r.safetensors"))


def test_a_run_with_cream_its_file_and_its_bank(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = SceneNet(widths=(4, 4, 8, 8)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data = Scenes("train", 16, size=32)
    options = {"epochs": 1, "batch_size": 8, "input_size": 32}
    result = camtools.finetune("cream_regressor", net, data, data, out=tmp_path / "a", **options, **RUN)
    step = next(one for one in result.pipeline if isinstance(one, CREAM))
    fitted = ContextBank.fit(net, data, mode="mean", progress=False, transform=Preprocess(
        input_size=(32, 32), resize=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3))  # fmt: skip
    torch.testing.assert_close(step.bank.foreground, fitted.foreground, atol=2e-2, rtol=2e-2)
    assert torch.equal(step.bank.counts, fitted.counts)
    loaded = BoxRegressor.load(result.paths["best"], net)
    image = data[0].image
    assert torch.equal(loaded.boxes(image), result.model.boxes(image))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    again = camtools.finetune("cream_regressor", net, data, data, out=tmp_path / "a", resume=True, **options, **RUN)
    assert torch.equal(again.model.boxes(image), result.model.boxes(image))
    first = camtools.finetune("cream", net, data, out=tmp_path / "c", **options, **RUN)
    bank = str(first.paths["bank"])
    other = camtools.finetune("cream_regressor", first.model, data, bank=bank, **options, **RUN)
    step = next(one for one in other.pipeline if isinstance(one, CREAM))
    assert torch.equal(step.bank.foreground, ContextBank.load(bank).foreground)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"bank": "x.safetensors"}, Squares(8), r"bank='x.safetensors' goes with maps='cream', but maps is"),
        ({"augment": ("has",)}, Squares(8), r"augment=.*expected any of crop, flip, vflip, colour"),
        ({"examples": 2}, Squares(8), r"examples=2"),
        ({"best": "accuracy"}, Squares(8), r"best='accuracy': expected one of last, loss, GT-known@own, MaxBoxAccV2"),
        ({}, Squares(8, blank=True), r"draws no box on any training image"),
        ({}, Scenes("train", 8, size=32), r"learns from the maps of a classifier that knows the data's 8 classes"),
    ],
)
def test_refusals(bright, options, data, message):
    with pytest.raises(InputError, match=message):
        camtools.finetune("cream_regressor", bright, data, epochs=1, **config(**options), **RUN)


def test_data_without_boxes_cannot_judge():
    class Unknown(Squares):
        def record(self, index):
            found = super().record(index)
            found.boxes[:] = torch.nan
            return found

    with pytest.raises(InputError, match="no image has a true box"):
        box_ious(fixed(0.1, 0.2, 0.3, 0.4), Unknown(4))
    with pytest.raises(InputError, match="the network has 3 outputs: expected 4"):
        BoxRegressor(camtools.heads.replace_head(Fixed(), camtools.heads.GAP()))
