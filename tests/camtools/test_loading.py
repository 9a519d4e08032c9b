"""Models by name, with weights and preprocessing."""

import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from camtools.classes.names import imagenet_names
from camtools.errors import ModelError, WeightsError
from camtools.images.adjusted import adjust
from camtools.images.measured import MeasuredTransform
from camtools.images.preprocess import Preprocess
from camtools.images.read import read_image
from camtools.loading import load_model
from camtools.sources import FunctionSource, find_source
from camtools_adapters.timm import TimmSource
from camtools_adapters.torchvision import TorchvisionSource

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MODEL_FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))

def plain():
    return Net()

def counted(num_classes=3, scale=1.0):
    model = Net(num_classes)
    model.scale = scale
    return model.train()

def normalised():
    return Net(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

def transformed():
    return Net(), lambda image: torch.zeros(3, 8, 8)

def told():
    return {"model": Net(2), "mean": (0.5,) * 3, "std": (0.5,) * 3, "size": 64, "class_names": ["cat", "dog"]}

def failing():
    raise FileNotFoundError("weights.pt is gone")

def leaving():
    raise SystemExit(3)

def number():
    return 7

def four():
    return Net(), 1, 2, 3

def misspelt():
    return {"model": Net(), "means": (0.5,)}

def not_model():
    return None, (0.5,), (0.5,)

def not_transform():
    return Net(), 3

def both():
    return {"model": Net(), "size": 64, "transform": print}

def imports_beside_it():
    import helper_beside_it
    return Net(helper_beside_it.CLASSES)

LIMIT = 5
"""


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "nets.py").write_text(MODEL_FILE)
    (tmp_path / "helper_beside_it.py").write_text("CLASSES = 6\n")
    return tmp_path / "nets.py"


class TestFindSource:
    @pytest.mark.parametrize(
        ("spec", "kind"),
        [
            ("timm/resnet18", TimmSource),
            ("timm/resnet18.a1_in1k", TimmSource),
            ("torchvision/resnet18", TorchvisionSource),
            ("package.module:function", FunctionSource),
            ("torchvision/own/model.py:function", FunctionSource),
            ("model.py:function", FunctionSource),
            ("/abs/model.py:function", FunctionSource),
        ],
    )
    def test_forms(self, spec, kind):
        assert type(find_source(spec)) is kind

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("resnet50", "'resnet50' does not name a model: names have the form timm/NAME, torchvision/NAME, "),
            ("resnet50", "Did you mean timm/resnet50 or torchvision/resnet50?"),
            ("keras/resnet50", "Did you mean timm/resnet50 or torchvision/resnet50?"),
            ("", "does not name a model"),
            ("torchvision/resnet51", "There is no model torchvision/resnet51. Did you mean torchvision/resnet"),
            ("torchvision/zzzzzz", "List them with torchvision.models.list_models()."),
            ("torchvision/fcn_resnet50", "torchvision/fcn_resnet50 is not an image classifier"),
            ("timm/resnet5O", "There is no model timm/resnet5O. Did you mean timm/resnet50"),
            ("timm/resnet18.a9_in1k", "timm/resnet18 has no weights tagged 'a9_in1k', but a1_in1k, "),
            ("model.py", "'model.py' lacks the function that builds the model: say FILE.py:function"),
            ("model.py:", "lacks the function"),
        ],
    )
    def test_unknown(self, spec, words):
        with pytest.raises(ModelError) as caught:
            find_source(spec)
        assert words in str(caught.value)


class TestTorchvision:
    def test_random(self):
        loaded = load_model("torchvision/squeezenet1_1", "random")
        assert not loaded.model.training
        assert loaded.class_names == imagenet_names()
        assert loaded.spec == "torchvision/squeezenet1_1"
        assert isinstance(loaded.preprocess, Preprocess)
        assert (loaded.preprocess.input_size, loaded.preprocess.mean, loaded.preprocess.std) == ((224, 224), *IMAGENET)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_class_count_and_values_come_from_the_file(self, tmp_path, dtype):
        from torchvision.models import squeezenet1_1

        made = squeezenet1_1(num_classes=7)
        state = {f"module.{k}": v.to(dtype) for k, v in made.state_dict().items()}
        save_file(state, tmp_path / "w.safetensors")
        loaded = load_model("torchvision/squeezenet1_1", tmp_path / "w.safetensors")
        assert loaded.class_names is None
        for key, value in loaded.model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, made.state_dict()[key].to(dtype).float())

    def test_names_may_be_given(self, tmp_path):
        loaded = load_model("torchvision/squeezenet1_1", "random", num_classes=2, class_names=["cat", "dog"])
        assert loaded.class_names == ("cat", "dog")
        assert loaded.model.classifier[1].out_channels == 2

    def test_a_checkpoint_of_another_model(self, tmp_path):
        from torchvision.models import mobilenet_v2

        torch.save(mobilenet_v2().state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            load_model("torchvision/squeezenet1_1", tmp_path / "w.pth")
        assert "w.pth does not fit torchvision/squeezenet1_1: 50 keys missing (features.0.weight, " in str(caught.value)
        assert "keys unexpected (features.0.0.weight, " in str(caught.value)

    def test_a_checkpoint_of_another_number_of_classes_than_asked_for(self, tmp_path):
        from torchvision.models import squeezenet1_1

        torch.save(squeezenet1_1(num_classes=7).state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="is for 7 classes, but num_classes is 5"):
            load_model("torchvision/squeezenet1_1", tmp_path / "w.pth", num_classes=5)

    @pytest.mark.parametrize("aux", [False, True])
    def test_auxiliary_heads_are_built_where_the_file_has_them(self, tmp_path, aux):
        from torchvision.models import googlenet

        made = googlenet(init_weights=False, aux_logits=aux, num_classes=5)
        torch.save(made.state_dict(), tmp_path / "w.pth")
        model = load_model("torchvision/googlenet", tmp_path / "w.pth").model
        assert model.state_dict().keys() == made.state_dict().keys()
        assert model.transform_input is False

    def test_a_file_under_its_published_name_is_built_as_published(self, tmp_path):
        from torchvision.models import GoogLeNet_Weights, googlenet

        path = tmp_path / GoogLeNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        torch.save(googlenet(init_weights=False).state_dict(), path)
        assert load_model("torchvision/googlenet", path).model.transform_input is True

    def test_files_from_the_first_densenets(self, tmp_path):
        from torchvision.models import densenet121

        made = densenet121()
        old = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in made.state_dict().items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        torch.save(old, tmp_path / "w.pth")
        loaded = load_model("torchvision/densenet121", tmp_path / "w.pth")
        assert all(torch.equal(v, made.state_dict()[k]) for k, v in loaded.model.state_dict().items())

    def test_mnasnet_from_a_format_without_versions(self, tmp_path):
        from torchvision.models import mnasnet0_5

        save_file(mnasnet0_5(num_classes=4).state_dict(), tmp_path / "w.safetensors")
        assert load_model("torchvision/mnasnet0_5", tmp_path / "w.safetensors").model.classifier[1].out_features == 4

    def test_published_weights_out_of_reach(self, no_network):
        for weights in (None, "IMAGENET1K_V1"):
            with pytest.raises(WeightsError) as caught:
                load_model("torchvision/resnet18", weights)
            assert "The weights of torchvision/resnet18 cannot be downloaded: https://" in str(caught.value)
            assert "--weights FILE" in str(caught.value)
            assert "--weights random" in str(caught.value)

    def test_published_weights_have_their_own_number_of_classes(self):
        with pytest.raises(WeightsError, match="are for 1000 classes; with num_classes=5 its classifier would"):
            load_model("torchvision/resnet18", num_classes=5)

    def test_wrong_arguments(self):
        with pytest.raises(ModelError, match=r"torchvision/resnet18 cannot be built: TypeError.*colour"):
            load_model("torchvision/resnet18", "random", model_args={"colour": "red"})


class TestTimm:
    def test_random(self):
        loaded = load_model("timm/mobilenetv3_small_050", "random", model_args={"drop_rate": 0.1})
        assert not loaded.model.training
        assert loaded.model.drop_rate == 0.1
        assert loaded.class_names == imagenet_names()
        assert loaded.preprocess.input_size == (224, 224)
        assert loaded.preprocess.interpolation == "bicubic"

    def test_class_count_and_values_come_from_the_file(self, tmp_path):
        import timm

        made = timm.create_model("resnet10t", num_classes=9)
        torch.save({"state_dict": made.state_dict()}, tmp_path / "w.pth")
        loaded = load_model("timm/resnet10t", tmp_path / "w.pth")
        assert loaded.model.num_classes == 9
        assert all(torch.equal(v, made.state_dict()[k]) for k, v in loaded.model.state_dict().items())

    def test_keys_of_the_original_authors_are_translated(self, tmp_path):
        import timm

        made = timm.create_model("convnext_atto")
        old = {
            k.replace("stem.", "downsample_layers.0.")
            .replace(".mlp.fc1.", ".pwconv1.")
            .replace(".mlp.fc2.", ".pwconv2.")
            .replace(".conv_dw.", ".dwconv.")
            .replace("head.fc.", "head.")
            .replace("head.norm.", "norm."): v
            for k, v in made.state_dict().items()
        }
        for stage in (1, 2, 3):
            old = {k.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}."): v for k, v in old.items()}
        old = {k.replace(".blocks.", "."): v for k, v in old.items()}
        assert "downsample_layers.0.0.weight" in old
        torch.save(old, tmp_path / "w.pth")
        loaded = load_model("timm/convnext_atto", tmp_path / "w.pth")
        assert all(torch.equal(v, made.state_dict()[k]) for k, v in loaded.model.state_dict().items())

    def test_size_reaches_models_of_a_fixed_size(self):
        loaded = load_model("timm/test_vit", "random", size=192)
        assert loaded.preprocess.input_size == (192, 192)
        assert loaded.model(torch.zeros(1, 3, 192, 192)).shape == (1, 1000)

    def test_published_weights_out_of_reach(self, no_network):
        with pytest.raises(WeightsError) as caught:
            load_model("timm/resnet18")
        assert "The weights of timm/resnet18 cannot be downloaded: https://huggingface.co is out of reach" in str(
            caught.value
        )
        assert "--weights FILE" in str(caught.value)

    def test_models_without_published_weights(self):
        import timm

        name = next(n for n in timm.list_models() if not timm.models.get_pretrained_cfg(n).has_weights)
        with pytest.raises(WeightsError, match=rf"timm publishes no weights for timm/{name}\. Give a checkpoint"):
            load_model(f"timm/{name}")

    def test_wrong_arguments(self):
        with pytest.raises(ModelError, match=r"timm/resnet10t cannot be built: TypeError.*colour"):
            load_model("timm/resnet10t", "random", model_args={"colour": "red"})


class TestFunction:
    def test_plain(self, model_file):
        before = list(sys.path)
        loaded = load_model(f"{model_file}:plain")
        assert type(loaded.model).__name__ == "Net"
        assert not loaded.model.training
        assert (loaded.preprocess, loaded.class_names) == (None, None)
        assert sys.path == before

    def test_normalisation(self, model_file):
        loaded = load_model(f"{model_file}:normalised")
        assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        assert loaded.preprocess.input_size == (224, 224)

    def test_transform(self, model_file):
        loaded = load_model(f"{model_file}:transformed")
        assert loaded.preprocess(None).shape == (3, 8, 8)
        with pytest.raises(ModelError, match="cannot change the transform that the function returned"):
            load_model(f"{model_file}:transformed", size=64)

    def test_everything(self, model_file):
        loaded = load_model(f"{model_file}:told")
        assert loaded.class_names == ("cat", "dog")
        assert (loaded.preprocess.input_size, loaded.preprocess.mean) == ((64, 64), (0.5, 0.5, 0.5))

    def test_arguments_and_weights(self, model_file, tmp_path):
        made = load_model(f"{model_file}:counted", num_classes=8).model
        torch.save(made.state_dict(), tmp_path / "w.pth")
        loaded = load_model(f"{model_file}:counted", tmp_path / "w.pth", model_args={"scale": 2.0})
        assert loaded.model.scale == 2.0
        assert torch.equal(loaded.model.fc.weight, made.fc.weight)

    def test_weights_of_another_count_than_a_function_can_build(self, model_file, tmp_path):
        torch.save(load_model(f"{model_file}:counted", num_classes=8).model.state_dict(), tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"tensors of another kind \(fc\.weight"):
            load_model(f"{model_file}:plain", tmp_path / "w.pth")
        with pytest.raises(ModelError, match="has no parameter num_classes, so num_classes=8 cannot be had"):
            load_model(f"{model_file}:plain", num_classes=8)

    def test_a_files_own_folder_is_importable(self, model_file, monkeypatch):
        monkeypatch.delitem(sys.modules, "helper_beside_it", raising=False)
        before = list(sys.path)
        assert load_model(f"{model_file}:imports_beside_it").model.fc.out_features == 6
        assert sys.path == before

    def test_modules_of_the_working_folder(self, model_file, monkeypatch):
        monkeypatch.chdir(model_file.parent)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
        (model_file.parent / "camtools_test_nets.py").write_text(MODEL_FILE)
        assert type(load_model("camtools_test_nets:plain").model).__module__ == "camtools_test_nets"

    def test_the_working_folder_hides_nothing_installed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong one')")
        with pytest.raises(ModelError, match="colorsys has no function model"):
            load_model("colorsys:model")

    @pytest.mark.parametrize(
        ("function", "words"),
        [
            ("plane", "has no function plane. Did you mean plain?"),
            ("LIMIT", "has no function LIMIT. It has Net, plain, "),
            ("failing", "failed: FileNotFoundError: weights.pt is gone"),
            ("leaving", "failed: SystemExit: 3"),
            ("number", "returned int, but a function must return the model; (model, mean, std)"),
            ("four", "returned tuple of 4, but"),
            ("misspelt", "returned the keys ['means'], but"),
            ("not_model", "returned None as the model, but"),
            ("not_transform", "returned int as the transform, which is not callable"),
            ("both", "returned a transform and size: give one or the other"),
        ],
    )
    def test_what_functions_may_not_do(self, model_file, function, words):
        before = list(sys.path)
        with pytest.raises(ModelError) as caught:
            load_model(f"{model_file}:{function}")
        assert words in str(caught.value)
        assert "nets.py" in str(caught.value)
        assert sys.path == before

    def test_files_that_cannot_be_imported(self, tmp_path):
        (tmp_path / "broken.py").write_text("import no_such_package_at_all\n")
        with pytest.raises(ModelError, match=r"broken\.py cannot be imported: ModuleNotFoundError: .*no_such_pack"):
            load_model(f"{tmp_path}/broken.py:model")
        with pytest.raises(ModelError, match=r"There is no file .*brokn\.py\. Did you mean .*broken\.py\?"):
            load_model(f"{tmp_path}/brokn.py:model")
        with pytest.raises(ModelError, match=r"no_such_package\.nets cannot be imported: ModuleNotFoundError"):
            load_model("no_such_package.nets:model")

    def test_names_come_from_the_adapter_that_knows_the_model(self, model_file):
        source = "from torchvision.models import squeezenet1_1\n\ndef one(**args):\n    return squeezenet1_1(**args)\n"
        (model_file.parent / "one.py").write_text(source)
        known = load_model(f"{model_file.parent}/one.py:one")
        assert known.class_names == imagenet_names()
        assert known.preprocess.input_size == (224, 224)
        assert load_model(f"{model_file}:counted", num_classes=1000).class_names is None


class TestAdjust:
    def test_nothing_to_change(self):
        assert adjust(None) is None
        known = Preprocess.imagenet()
        assert adjust(known) is known

    def test_mean_and_std(self):
        changed = adjust(Preprocess.imagenet(), mean=(0.5,), std=(0.1, 0.2, 0.3))
        assert (changed.mean, changed.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
        assert changed.input_size == (224, 224)

    @pytest.mark.parametrize("size", [(112, 112), (448, 448), (160, 320)])
    def test_size_keeps_the_proportion_of_crop_to_resize(self, size):
        changed = adjust(Preprocess.imagenet(), size=size)
        tensor, geometry = changed(read_image(Image.new("RGB", (400, 300))))
        assert tensor.shape == (3, *size)
        assert geometry.input_size == size

    def test_without_a_known_preprocessing_imagenets_usual_is_taken(self):
        assert adjust(None, size=(64, 64)).mean == pytest.approx(IMAGENET[0])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"mean": (0.5, 0.5)}, "mean needs 1 or 3 numbers, one per channel, but has 2"),
            ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ],
    )
    def test_refuses(self, changes, words):
        with pytest.raises(ModelError, match=words):
            adjust(Preprocess.imagenet(), **changes)


def test_an_impossible_size():
    with pytest.raises(ModelError, match="An input of 0 x 224 pixels is impossible"):
        load_model("torchvision/squeezenet1_1", "random", size=(0, 224))


class TestShared:
    def test_the_bird_classifier_from_its_file_alone(self, shared):
        loaded = load_model("torchvision/mobilenet_v2", shared / "weights" / "mobilenet_v2_cub.safetensors")
        assert loaded.model.classifier[1].out_features == 200
        assert next(loaded.model.parameters()).dtype == torch.float32
        assert loaded.class_names is None

    def test_padding_from_an_argument(self, shared):
        path = shared / "weights" / "mobilenetv1_100_imagenet.safetensors"
        loaded = load_model("timm/mobilenetv1_100", path, model_args={"pad_type": "same"}, mean=(0.5,), std=(0.5,))
        assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
        assert any("Same" in type(m).__name__ for m in loaded.model.modules())

    def test_a_function_with_mean_and_std(self, shared):
        loaded = load_model(f"{shared}/weights/load.py:classifier", model_args={"name": "squeezenet1_1"})
        assert isinstance(loaded.model, nn.Module)
        assert loaded.preprocess.mean == IMAGENET[0]
        assert loaded.class_names == imagenet_names()


def test_an_adapter_may_give_a_callable_as_preprocessing(monkeypatch, tmp_path):
    def halve(image):
        return pil_to_tensor(image).float()[:, ::2, ::2] / 255

    (tmp_path / "mine.py").write_text("import torchvision\n\ndef build():\n    return torchvision.models.resnet18()\n")
    adapter = type("Mine", (), {"data_config": lambda self, model: halve, "class_names": lambda self, model: None})()
    monkeypatch.setattr("camtools.loading.find_adapter", lambda model: adapter)
    loaded = load_model(f"{tmp_path / 'mine.py'}:build")
    assert isinstance(loaded.preprocess, MeasuredTransform)
    assert loaded.preprocess.transform is halve
