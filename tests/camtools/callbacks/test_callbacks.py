"""Panels are read back from what was logged: TensorBoard's event files, MLflow's folder, and stand-ins elsewhere."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from camtools.callbacks import log_explanations, send_image
from camtools.errors import InputError
from camtools.images import Preprocess

WHOLE = Preprocess.imagenet(16, squash=True)


def logged(folder: Path, tag: str = "explanations") -> list[tuple[int, np.ndarray]]:
    """Return steps and images of TensorBoard's event files in a folder and those below it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for events in sorted(folder.rglob("events.out.tfevents.*")):
        reader = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
        if tag in reader.Tags()["images"]:
            found += [
                (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")))
                for event in reader.Images(tag)
            ]
    return sorted(found, key=lambda pair: pair[0])


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Let no test's accelerator, or that of a library's trainer, be the one that later tests train with."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)


@pytest.fixture
def photos() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.fixture
def panel() -> Image.Image:
    return Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))


class Net(nn.Module):
    """Two classes from one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_what_is_drawn_is_what_is_logged(photos, tmp_path):
    model = Net().train()
    with SummaryWriter(str(tmp_path)) as writer:
        drawn = log_explanations(model, photos, writer, 7, target=[1, 0], class_names=["cat", "dog"], transform=WHOLE)
    [(step, image)] = logged(tmp_path)
    assert step == 7 and np.array_equal(image, np.asarray(drawn))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_a_figure_shows_the_model_as_it_is(photos):
    model = Net()
    seen = []
    for _ in range(2):
        log_explanations(model, photos, lambda *said: seen.append(said), 0, target=0, transform=WHOLE)
    with torch.no_grad():
        model.conv.weight.neg_()
    log_explanations(model, photos, lambda *said: seen.append(said), 1, target=0, transform=WHOLE, tag="later")
    first, again, changed = (np.asarray(image) for _, image, _ in seen)
    assert np.array_equal(first, again) and not np.array_equal(first, changed)
    assert [(tag, step) for tag, _, step in seen] == [("explanations", 0), ("explanations", 0), ("later", 1)]


def test_an_accelerator_and_its_tracker(panel, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    send_image(accelerator, "a", panel, 3)
    send_image(accelerator.get_tracker("tensorboard"), "a", panel, 4)
    accelerator.end_training()
    found = logged(tmp_path, "a")
    assert [step for step, _ in found] == [3, 4]
    assert all(np.array_equal(image, np.asarray(panel)) for _, image in found)


def test_mlflow(panel, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        send_image(mlflow, "a", panel, 5)
        send_image(run, "a", panel, 6)
    files = sorted(tmp_path.rglob("*.png"))
    assert [re.search(r"a\Wstep\W(\d)\W", file.name)[1] for file in files] == ["5", "6"]
    assert np.array_equal(np.asarray(Image.open(files[0]).convert("RGB")), np.asarray(panel))


def test_weights_and_biases(panel, tmp_path):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        send_image(run, "a", panel, 5)
    [file] = tmp_path.rglob("media/images/a_*.png")
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), np.asarray(panel))


def test_lightnings_loggers_by_their_attributes(panel, monkeypatch):
    """Stand-ins with what the loggers of Lightning for MLflow and W&B have, which need a service to run."""
    said = []
    client = SimpleNamespace(log_image=lambda run, image, key, step: said.append(("mlflow", run, key, step)))
    wandb = ModuleType("wandb")
    wandb.Image = lambda image: ("image", image.size)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = type("Run", (), {"__module__": "wandb.sdk.wandb_run", "log": lambda _, values: said.append(values)})()
    send_image([SimpleNamespace(run_id="r", experiment=client), SimpleNamespace(experiment=run)], "a", panel, 2)
    assert said == [("mlflow", "r", "a", 2), {"a": ("image", (6, 4)), "a_step": 2}]


def test_an_unknown_logger_is_named(panel):
    with pytest.raises(InputError, match=r"logger=3: expected a SummaryWriter"):
        send_image(3, "a", panel, 0)


def lightning() -> ModuleType:
    return pytest.importorskip("pytorch_lightning", reason="pip install pytorch-lightning")


def fit(folder: Path, epochs: int, callback: object) -> None:
    pl = lightning()
    from pytorch_lightning.loggers import TensorBoardLogger

    class Module(pl.LightningModule):
        """Its own forward gives no logits: the classifier is the attribute `net`."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net(x).argmax(1)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    data = torch.utils.data.TensorDataset(torch.randn(8, 3, 16, 16), torch.tensor([0, 1] * 4))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_every_other_epoch(photos, tmp_path):
    lightning()
    from camtools.callbacks.lightning import ExplanationCallback

    fit(tmp_path, 4, ExplanationCallback(photos, [0, 1], every=2, classifier="net", transform=WHOLE))
    found = logged(tmp_path)
    assert [step for step, _ in found] == [0, 4, 8]  # two batches per epoch
    assert not np.array_equal(found[0][1], found[2][1])  # it has learnt something


@pytest.mark.filterwarnings("ignore")
def test_hf_trainer_logs_every_other_epoch(photos, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    from camtools.callbacks.huggingface import ExplanationCallback

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=2)
    model = transformers.ResNetForImageClassification(config)
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 2} for i in range(8)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        report_to=["tensorboard"],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=0.01,
    )
    callback = ExplanationCallback(photos, [0, 1], every=2, transform=Preprocess.imagenet(32, squash=True))
    transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    found = logged(tmp_path)
    assert [step for step, _ in found] == [0, 4, 8]
    assert not np.array_equal(found[0][1], found[2][1])


@pytest.mark.parametrize("name", ["lightning", "huggingface"])
def test_without_the_library_the_error_says_what_to_install(name, monkeypatch):
    import importlib

    module = importlib.import_module(f"camtools.callbacks.{name}")
    monkeypatch.setattr(module, "Callback" if name == "lightning" else "TrainerCallback", None)
    with pytest.raises(InputError, match="is not installed: pip install"):
        module.ExplanationCallback([])
