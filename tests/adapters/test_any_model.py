"""What people bring besides timm and torchvision: other channels, outputs, wrappers, and what cannot work."""

import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import camtools
from camtools import InputError, ModelError, Preprocess, explain, wrap
from camtools.model import FeatureSpec

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolution, ReLU, average pooling, linear; `end` makes of features, pooled vector and logits what it returns."""

    def __init__(self, classes=4, end=None, channels=3, scale=6.0):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(channels, 8, 4, 4), nn.ReLU(), nn.Linear(8, classes)
        self.embed, self.aux = nn.Linear(8, 16), nn.Linear(8, classes)
        self.end = end
        nn.init.normal_(self.fc.weight, std=scale)

    def forward(self, x):
        f = self.relu(self.conv(x))
        pooled = f.mean((2, 3))
        logits = self.fc(pooled)
        return logits if self.end is None else self.end(self, f, pooled, logits)


def net(*args, **kwargs):
    torch.manual_seed(0)
    return Net(*args, **kwargs).eval()


def plain(model, x=X):
    """The logits and maps of a `Net`, worked out."""
    f = torch.relu(model.conv(x))
    return model.fc(f.mean((2, 3))), torch.einsum("kc,bchw->bkhw", model.fc.weight, f)


# Channels


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_timm_models_of_other_channels(channels):
    model = timm.create_model("test_resnet", in_chans=channels).eval()
    x = torch.randn(1, channels, 160, 160)
    exp = explain(model, x[0])
    torch.testing.assert_close(exp.logits, model(x)[0].detach())
    assert exp.overlay(legend=False).size == (160, 160)
    assert camtools.Explainer(model).transform.channels == channels
    assert wrap(model).example().shape == (1, channels, 160, 160)
    with pytest.raises(InputError, match=rf"expected {channels}, as the model takes"):
        explain(model, torch.randn(9, 160, 160))
    with pytest.raises(InputError, match=rf"by its configuration {channels}x160x160"):
        wrap(model).maps(torch.randn(1, 9, 160, 160))


def test_grey_images_for_a_grey_model():
    model = timm.create_model("test_resnet", in_chans=1).eval()
    levels = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    config = timm.data.resolve_model_data_config(model)
    mean, std = sum(config["mean"]) / 3, sum(config["std"]) / 3
    transform = Preprocess(input_size=None, resize=None, mean=(mean,), std=(std,), channels=1)
    ready = ((torch.from_numpy(levels).float() / 255 - mean) / std)[None, None]
    for image in (levels, Image.fromarray(levels), np.stack([levels] * 3, -1)):
        torch.testing.assert_close(explain(model, image, transform=transform).logits, model(ready)[0].detach())
    assert explain(model, Image.fromarray(levels)).map.shape == (160, 160)


def test_arrays_of_five_channels():
    model = timm.create_model("test_resnet", in_chans=5).eval()
    values = np.random.default_rng(0).random((160, 160, 5), dtype=np.float32)
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    transform = Preprocess(input_size=None, resize=None, mean=mean, std=std, channels=5)
    ready = (torch.from_numpy(values).permute(2, 0, 1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    exp = explain(model, values, transform=transform)
    torch.testing.assert_close(exp.logits, model(ready[None])[0].detach(), atol=1e-4, rtol=1e-4)
    assert np.array_equal(np.asarray(exp.image), np.rint(values[..., :3] * 255).astype(np.uint8))
    shown = explain(model, values, transform=transform, display=(4, 2, 0)).image
    assert np.array_equal(np.asarray(shown), np.rint(values[..., [4, 2, 0]] * 255).astype(np.uint8))
    sixteen = np.rint(values * 65535).astype(np.uint16)
    torch.testing.assert_close(explain(model, sixteen, transform=transform).logits, exp.logits, atol=1e-2, rtol=1e-2)
    levels = torch.from_numpy(np.rint(values * 255).astype(np.uint8)).permute(2, 0, 1)
    torch.testing.assert_close(explain(model, levels, transform=transform).logits, exp.logits, atol=1e-1, rtol=1e-1)
    with pytest.raises(InputError, match=r"display=\(7,\): expected channels from 0 to 4"):
        explain(model, values, transform=transform, display=7).overlay()
    with pytest.raises(InputError, match="display='red': expected the number of one channel"):
        explain(model, values, transform=transform, display="red")
    with pytest.raises(InputError, match=r"has 3 channels: expected 5, as the model takes. Pass an array \(H, W, 5\)"):
        explain(model, Image.new("RGB", (32, 32)), transform=transform)
    with pytest.raises(InputError, match=r"so 4 channels: expected 5, as the model takes"):
        explain(model, values[..., :4], transform=transform)


def test_channels_are_resized_as_a_photo_is():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    usual = Preprocess(input_size=(32, 32), resize=40)
    five = np.concatenate([image, image[..., :2]], 2)
    other = Preprocess(
        input_size=(32, 32), resize=40, channels=5, mean=usual.mean + usual.mean[:2], std=usual.std + usual.std[:2]
    )
    read = camtools.images.read.read_image(five, channels=5)
    made, geometry = other(read)
    want, same = usual(camtools.images.read_image(image))
    assert geometry == same and (made[:3] - want).abs().max() < 1 / 255 / 0.22  # photos are rounded to levels


@pytest.mark.parametrize("family", ["resnet18", "vit_b_16", "swin_t"])
def test_first_layers_tell_the_channels(family):
    model = getattr(torchvision.models, family)(weights=None)
    name, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    grey = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, grey)
    assert wrap(model).example().shape[1] == 1


def test_folded_pixels_are_no_channels():
    class Focus(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(12, 8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.conv(nn.functional.pixel_unshuffle(x, 2)).relu().mean((2, 3)))

    assert wrap(Focus().eval()).example().shape == (1, 3, 224, 224)


# Where the features are


class Backbone(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.relu, self.kind = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), kind

    def forward(self, x):
        f = self.relu(self.conv(x))
        if self.kind == "tuple":
            return f, f.mean((2, 3))
        if self.kind == "dict":
            return {"map": f, "pooled": f.mean((2, 3))}
        return [f, [f.mean((2, 3)), f]]


@pytest.mark.parametrize("kind", ["tuple", "dict", "list"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_backbone_that_has_pooled_what_it_returns(kind, grad):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Backbone(kind)
            self.head = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

        def forward(self, x):
            out = self.body(x)
            return self.head(out[1] if kind == "tuple" else out["pooled"] if kind == "dict" else out[1][0])

    model = Pooled().eval()
    with torch.set_grad_enabled(grad):
        cam_model = wrap(model)
        maps = cam_model.maps(X, [1, 2])
    assert cam_model.decomposition.layer == "body.relu"
    f = torch.relu(model.body.conv(X)).detach().requires_grad_()
    scores = model.head(f.mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores[0, 1] + scores[1, 2], f)
    torch.testing.assert_close(maps[:, 0].detach(), (gradient * f).sum(1).detach() * 64)
    words = r"do not come from the output of layer 'body'.*Name a layer inside it"
    with pytest.raises(ModelError, match=words), torch.no_grad():
        wrap(model, spec=FeatureSpec("body")).maps(X, [1, 2])


def test_no_grad_is_named_where_it_is_so():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

        def forward(self, x):
            f = self.conv(x)
            with torch.no_grad():
                return self.fc(f.mean((2, 3)).tanh())

    with pytest.raises(ModelError, match=r"runs under torch.no_grad\(\)"):
        wrap(Frozen().eval(), spec=FeatureSpec("conv")).maps(X, 1)


# Outputs


PROBABILITIES = {
    "nn.Softmax": lambda self, f, p, z: nn.Softmax(1)(z),
    "F.softmax": lambda self, f, p, z: nn.functional.softmax(z, dim=-1),
    "tensor.softmax": lambda self, f, p, z: z.softmax(1),
    "log-softmax": lambda self, f, p, z: nn.functional.log_softmax(z, 1),
    "nn.Sigmoid": lambda self, f, p, z: nn.Sigmoid()(z),
    "torch.sigmoid": lambda self, f, p, z: torch.sigmoid(z),
    "in place": lambda self, f, p, z: z.sigmoid_(),
    "log-sigmoid": lambda self, f, p, z: nn.functional.logsigmoid(z),
    "sigmoid by hand": lambda self, f, p, z: 1 / (1 + torch.exp(-z)),
    "softmax by hand": lambda self, f, p, z: z.exp() / z.exp().sum(1, keepdim=True),
    "exponential of log-softmax": lambda self, f, p, z: nn.functional.log_softmax(z, 1).exp(),
    "logarithm of a sigmoid": lambda self, f, p, z: z.sigmoid().log(),
    "clamped": lambda self, f, p, z: z.softmax(1).clamp(1e-7, 1 - 1e-7),
    "in double": lambda self, f, p, z: z.double().softmax(1).float(),
    "per cent": lambda self, f, p, z: 100 * z.softmax(1),
    "(B, 1, K)": lambda self, f, p, z: z.softmax(1)[:, None],
    "(B, K, 1, 1)": lambda self, f, p, z: z[..., None, None].softmax(1),
    "(probabilities, logits)": lambda self, f, p, z: (z.softmax(1), z),
    "(logits, probabilities)": lambda self, f, p, z: (z, z.softmax(1)),
    "dict of probabilities": lambda self, f, p, z: {"embedding": p, "probabilities": z.softmax(1)},
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_gone_behind(name):
    model = net(end=PROBABILITIES[name])
    logits, maps = plain(model)
    found = wrap(model).activations(X)
    assert found.decomposition.exact
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.maps(), maps)
    exp = explain(model, X[0])
    sigmoid = "sigmoid" in name.lower() or name == "in place"
    want = logits[0].sigmoid() if sigmoid else logits[0].softmax(0)
    assert exp.score == pytest.approx(float(want[exp.label]), rel=1e-5) and exp.label == int(logits[0].argmax())
    torch.testing.assert_close(exp.raw_map, maps[0, exp.label].detach())


def test_a_certain_sigmoid_still_has_a_map():
    model = net(end=PROBABILITIES["nn.Sigmoid"], scale=900.0)
    exp = explain(model, X[0])
    assert exp.score == 1.0 and exp.map.max() > 0 and exp.box is not None


def test_probabilities_whose_making_is_hidden():
    def end(self, f, p, z):
        return (z.softmax(1) + 1 / 4) / 2

    model = net(end=end, scale=1.0)
    exp = explain(model, X[0])
    assert exp.score == pytest.approx(float(model(X)[0].max()), rel=1e-4) and not exp.exact
    f = torch.relu(model.conv(X)).detach().requires_grad_()
    p = end(model, f, None, model.fc(f.mean((2, 3))))
    (gradient,) = torch.autograd.grad(p[0, exp.label].log(), f)
    torch.testing.assert_close(exp.raw_map, (gradient * f).sum(1)[0].detach() * 64, atol=1e-4, rtol=1e-3)


def test_pooled_features_are_no_scores():
    cut = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]).eval()
    with pytest.raises(
        ModelError, match=r"shape \(1, 512, 1, 1\) that no linear layer made.*output=lambda out: out.flat"
    ):
        wrap(cut).maps(torch.randn(1, 3, 64, 64))
    assert wrap(cut, output=lambda out: out.flatten(1)).maps(torch.randn(1, 3, 64, 64)).shape == (1, 512, 2, 2)


def test_one_sigmoid_per_attribute():
    class Heads(Net):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(4))

        def forward(self, x):
            p = self.relu(self.conv(x)).mean((2, 3))
            return torch.cat([head(p).sigmoid() for head in self.heads], 1)

    model = Heads().eval()
    f = torch.relu(model.conv(X)).detach()
    exp = explain(model, X[0], target=2)
    assert exp.score == pytest.approx(float(model(X)[0, 2]))
    maps = torch.einsum("c,chw->hw", model.heads[2].weight[0], f[0]).detach()
    torch.testing.assert_close(exp.raw_map, maps)
    words = r"5 tensors.*output=0, or a function of the output, such as output=lambda out: torch.cat\(out, 1\) for all"
    with pytest.raises(ModelError, match=words):
        explain(net(classes=5, end=lambda self, f, p, z: list(z.split(1, 1))), X[0])


def test_logits_are_left_alone():
    for end in (None, lambda self, f, p, z: z.relu(), lambda self, f, p, z: z * torch.sigmoid(z)):
        model = net(end=end)
        assert torch.equal(wrap(model).activations(X).logits, model(X))


EVIDENCE = {
    "(embedding, logits)": lambda self, f, p, z: (p, z),
    "(projection, logits)": lambda self, f, p, z: (nn.functional.normalize(self.embed(p)), z),
    "(logits, features)": lambda self, f, p, z: (z, f),
    "dict": lambda self, f, p, z: {"features": f, "embedding": p, "out": z},
    "nested": lambda self, f, p, z: {"loss": None, "heads": {"logits": z, "embedding": p}},
    "a list of one": lambda self, f, p, z: [z],
    "auxiliary": lambda self, f, p, z: {"out": z, "aux": self.aux(f.amax((2, 3)))},
    "(B, K, 1, 1) of a dict": lambda self, f, p, z: {"embedding": p[..., None, None], "out": z[..., None, None]},
}


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("grad", [False, True])
def test_the_logits_among_several_tensors(name, grad):
    model = net(end=EVIDENCE[name])
    logits, maps = plain(model)
    with torch.set_grad_enabled(grad):
        found = wrap(model).activations(X)
        torch.testing.assert_close(found.logits, logits)
        torch.testing.assert_close(found.maps(), maps)
    assert found.decomposition.exact


def test_an_embedding_that_a_linear_layer_made():
    """Only autograd tells that the logits come from it; it is asked even where the caller has gradients off."""

    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.embed, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 16), nn.Linear(16, 10)

        def forward(self, x):
            embedding = self.embed(self.conv(x).relu().mean((2, 3)))
            return embedding, self.fc(embedding.relu())

    model = Embeds().eval()
    with torch.no_grad():
        assert torch.equal(wrap(model).activations(X).logits, model(X)[1])
    assert explain(model, X[0]).logits.shape == (10,)


def test_what_is_ambiguous_is_listed():
    model = net(end=lambda self, f, p, z: (self.embed(p), z))
    words = (
        r"2 tensors could be the class scores: \[0\] of shape \(\d, 16\), \[1\] of shape \(\d, 4\). Say which: output=0"
    )
    with pytest.raises(ModelError, match=words):
        wrap(model).maps(X)
    for output in (1, -1, lambda out: out[1]):
        assert torch.equal(wrap(model, output=output).activations(X).logits, model(X)[1])
        assert explain(model, X[0], output=output).logits.shape == (4,)
    assert wrap(model, output=0).maps(X).shape[1] == 16
    model.num_classes = 4  # the model says which itself
    assert torch.equal(wrap(model).activations(X).logits, model(X)[1])
    with pytest.raises(ModelError, match=r"output=5 is not in what the model returned, tuple 2 items"):
        wrap(model, output=5).maps(X)
    with pytest.raises(InputError, match=r"output=1\.5: expected a position"):
        wrap(model, output=1.5)


def test_outputs_by_key_and_attribute():
    model = net(end=lambda self, f, p, z: {"age": self.embed(p), "kind": z})
    assert explain(model, X[0], output="kind").logits.shape == (4,)
    with pytest.raises(ModelError, match=r"output='none' is not in what the model returned, dict \['age', 'kind'\]"):
        explain(model, X[0], output="none")


def test_dense_outputs_say_how():
    model = net(end=lambda self, f, p, z: torch.einsum("kc,bchw->bkhw", self.fc.weight, f))
    nn.init.zeros_(model.fc.bias)
    with pytest.raises(ModelError, match=r"say how they become scores: output=lambda out: out.mean\(\(2, 3\)\)"):
        explain(model, X[0])
    named = net(end=lambda self, f, p, z: {"out": model.end(self, f, p, z)})
    with pytest.raises(ModelError, match=r"output=lambda out: out\['out'\].mean\(\(2, 3\)\)"):
        explain(named, X[0])
    cam_model = wrap(model, output=lambda out: out.mean((2, 3)))
    torch.testing.assert_close(cam_model.maps(X), plain(model)[1])
    assert cam_model.decomposition.exact


# One output


def test_one_logit_is_two_classes():
    model = net(classes=1)
    logits, maps = plain(model)
    with pytest.warns(UserWarning, match="has one output, taken for the logit of class 1 against class 0"):
        exp = explain(model, X[0])
    positive = float(logits[0, 0].sigmoid())
    assert exp.label == int(positive > 0.5) and exp.score == pytest.approx(max(positive, 1 - positive))
    no, yes = explain(model, X[0], target=[0, 1], class_names=["no", "yes"])
    assert (no.name, yes.name) == ("no", "yes") and no.score + yes.score == pytest.approx(1)
    torch.testing.assert_close(yes.raw_map, maps[0, 0].detach())
    torch.testing.assert_close(no.raw_map, -maps[0, 0].detach())
    torch.testing.assert_close(no.logits, torch.cat([-logits, logits], 1)[0].detach())
    assert explain(model, X[0], target=0, class_names=["tumour"]).name == "not tumour"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain(model, X[0], target=1, activation="sigmoid").score == pytest.approx(positive)
    assert wrap(model).maps(X).shape == (2, 1, 8, 8)  # as the model has it


@pytest.mark.parametrize(
    "end",
    [
        lambda self, f, p, z: z.sigmoid(),
        lambda self, f, p, z: z.sigmoid().squeeze(1),
        lambda self, f, p, z: z.squeeze(),
        lambda self, f, p, z: {"loss": None, "logits": z.flatten()},
    ],
    ids=["sigmoid", "squeezed sigmoid", "squeezed", "dict"],
)
def test_one_output_in_other_forms(end):
    model = net(classes=1, end=end)
    logits, maps = plain(model)
    for images, count in ((X, 2), (X[:1], 1)):
        found = explain(model, images, target=[1] * count, activation="sigmoid")
        for exp, z, m in zip(found, logits, maps, strict=False):
            assert exp.score == pytest.approx(float(z.sigmoid())) and exp.exact
            torch.testing.assert_close(exp.raw_map, m[0].detach())


def test_a_linearised_single_logit():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.Tanh(), nn.Linear(16, 1)
    )
    no, yes = explain(model.eval(), X[0], target=[0, 1], activation="sigmoid")
    assert not yes.exact
    torch.testing.assert_close(no.raw_map, -yes.raw_map)


def test_one_column_of_a_softmax_over_two():
    model = net(classes=2, end=lambda self, f, p, z: z.softmax(1)[:, 1])
    logits, maps = plain(model)
    exp = explain(model, X[0], target=1)
    assert exp.score == pytest.approx(float(logits[0].softmax(0)[1]))
    torch.testing.assert_close(exp.raw_map, maps[0, 1].detach())
    other = net(classes=2, end=lambda self, f, p, z: z.softmax(1)[:, 0])
    assert explain(other, X[0], target=1).score == pytest.approx(float(logits[0].softmax(0)[0]))


def test_a_number_is_no_probability():
    model = net(classes=1)
    model.fc.bias.data += 40
    exp = explain(model, X[0], activation="none", class_names=["age"])
    assert exp.score == pytest.approx(float(model(X)[0, 0])) and exp.caption == f"age {exp.score:.4g}"
    torch.testing.assert_close(exp.raw_map, plain(model)[1][0, 0].detach())
    with pytest.raises(InputError, match="activation='none': expected 'softmax' or 'sigmoid'"):
        camtools.segment(model, X[0], activation="none")


# What models say about themselves


class Around(nn.Module):
    def __init__(self, inner, *more):
        super().__init__()
        self.net = inner
        self.more = nn.Sequential(*more)

    def forward(self, x):
        return self.more(self.net(x))


def test_a_module_around_a_timm_model():
    inner = timm.create_model("test_resnet").eval()
    own = camtools.Explainer(inner)
    explainer = camtools.Explainer(Around(Around(inner)).eval())
    assert explainer.transform == own.transform and explainer.class_names == own.class_names
    small = Around(timm.create_model("test_resnet", num_classes=0), nn.Linear(96, 3)).eval()
    explainer = camtools.Explainer(small)
    assert explainer.transform == own.transform and explainer.class_names is None
    head = camtools.Explainer(Around(inner, nn.Linear(1000, 5)).eval())
    assert head(torch.randn(3, 160, 160)).name in list("01234")  # ImageNet's names are not those of five classes


def test_normalisation_inside_the_model_is_not_done_twice():
    class Normalise(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5, 0.5, 0.5])[:, None, None])
            self.register_buffer("std", torch.tensor([0.2, 0.2, 0.2])[:, None, None])

        def forward(self, x):
            return (x - self.mean) / self.std

    transform = camtools.Explainer(nn.Sequential(Normalise(), timm.create_model("test_resnet")).eval()).transform
    assert transform.mean == (0.0,) * 3 and transform.std == (1.0,) * 3 and transform.input_size == (160, 160)


@pytest.mark.parametrize("attribute", ["class_names", "names", "classes", "id2label"])
def test_names_in_the_usual_attributes(attribute):
    model, names = net(), ["a", "b", "c", "d"]
    setattr(model, attribute, dict(enumerate(names)) if attribute in ("names", "id2label") else names)
    assert explain(model, X[0], target="c").label == 2


def test_a_guess_is_said_once_and_can_be_silenced(recwarn):
    model, photo = net(), np.zeros((40, 50, 3), np.uint8)
    explain(model, X[0])
    assert not recwarn.list
    explainer = camtools.Explainer(model)
    with pytest.warns(
        UserWarning, match=r"its preprocessing is a guess, ImageNet's usual.*transform=camtools.Preprocess"
    ):
        explainer(photo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(photo)
        explain(model, photo, transform=Preprocess.imagenet())
        explain(timm.create_model("test_resnet"), photo)


# Tensors that are not ready


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_levels_are_refused(dtype):
    model = timm.create_model("test_resnet")
    levels = (torch.rand(2, 3, 160, 160) * 255).to(dtype)
    for images in (levels, levels[0], list(levels)):
        with pytest.raises(InputError, match=r"float tensor with values from \d.*Pass tensor.to\(torch.uint8\)"):
            explain(model, images)
    explain(model, levels.to(torch.uint8))
    explain(model, levels, transform=Preprocess(mean=(0,) * 3, std=(1 / 255,) * 3))  # who says so may


# What cannot work, and what else could


def test_a_forward_that_takes_more():
    class Meta(Net):
        def forward(self, image, meta, *, scale=1.0):
            return super().forward(image) + meta @ torch.ones(2, 4) * scale

    torch.manual_seed(0)
    model = Meta().eval()
    with pytest.raises(InputError, match=r"goes into forward_args=\(...\) or forward_kwargs"):
        explain(model, X[0])
    one, each = torch.ones(1, 2), torch.arange(4.0).view(2, 2)
    torch.testing.assert_close(wrap(model, forward_args=(each,)).activations(X).logits, model(X, each))
    called = {"forward_args": (one,), "forward_kwargs": {"scale": 2.0}}
    for exp, want in zip(explain(model, X, **called), model(X, one, scale=2.0), strict=True):
        torch.testing.assert_close(exp.logits, want.detach())
    torch.testing.assert_close(explain(model, X, forward_kwargs={"meta": each})[1].logits, model(X, each)[1].detach())
    with pytest.raises(InputError, match=r"has shape \(2, 2\) for a batch of 1 images: expected one row"):
        explain(model, X, forward_args=(each,), batch_size=1)
    with pytest.raises(InputError, match="expected a tuple of what forward takes"):
        wrap(model, forward_args=each[0])


def test_exported_programs():
    model = net()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    cam_model = wrap(program)
    torch.testing.assert_close(cam_model.maps(X), plain(model)[1])
    assert cam_model.decomposition.exact
    exp = explain(program, X[0])
    torch.testing.assert_close(exp.logits, model(X)[0].detach())
    with pytest.raises(ModelError, match=r"or torch.export.unflatten\(program\)"):
        wrap(program.module())


def test_torchscript_is_refused():
    scripted = torch.jit.trace(net(), X)
    with pytest.raises(ModelError, match=r"is a TorchScript module.*load_state_dict\(script.state_dict\(\)\)"):
        explain(scripted, X[0])


def test_integers_are_refused():
    quantised = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(ModelError, match=r"quantised to integers \(fc: Linear\).*Pass the float model"):
        explain(quantised, X[0])


@pytest.mark.parametrize("shape", [(1, 3, 8, 32, 32), (1, 3, 32, 32)])
def test_volumes_are_refused_in_one_sentence(shape):
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(InputError, match="amtools explains classifiers of 2-D images"):
        wrap(model).maps(torch.randn(shape))
    with pytest.raises(ModelError, match="amtools explains classifiers of 2-D images"):
        wrap(model).decomposition


def test_torchscript_inside_is_looked_past():
    class Inside(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.parts = nn.Sequential(*parts)

        def forward(self, x):
            return self.parts(x)

    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).train())
    inner = net()
    model = Inside(scripted, inner)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exp = explain(model, X[0])  # in eval mode, and in train mode again afterwards
    want = inner(torch.relu(X / torch.sqrt(torch.tensor(1 + 1e-5))))
    torch.testing.assert_close(exp.logits, want[0].detach())
    assert exp.layer == "parts.1.relu" and scripted.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match=r"class scores: its part 'parts.0' is TorchScript, which shows nothing"):
        explain(Inside(torch.jit.trace(inner, X)).eval(), X[0])


def test_several_runs_per_forward_are_named():
    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return (self.net(x) + self.net(x.flip(3))) / 2

    with pytest.raises(ModelError, match=r"its layers run up to 2 times per forward.*\(explain what it runs\)"):
        wrap(Flipped().eval()).maps(X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_named(dtype):
    with pytest.raises(InputError, match=rf"Its weights are {dtype}, the input torch.float32"):
        wrap(net().to(dtype)).maps(X)
    with pytest.raises(InputError, match="Its weights are"):
        wrap(net().to(dtype)).locate(X)


def test_images_in_another_form():
    class Batch(Net):
        def forward(self, batch):
            return super().forward(batch["image"])

    class Named(Net):
        def forward(self, *, pixel_values):
            return super().forward(pixel_values)

    for model in (Batch(), Named()):
        with pytest.raises(InputError, match=r"put it into a module whose forward\(x\) takes them as \(B, C, H, W\)"):
            explain(model.eval(), X[0])


def test_what_is_no_model_says_what_to_do():
    for given, words in (
        (Net, r"got type. That is the class; build one: Net\(...\)"),
        (net().state_dict(), "got OrderedDict. Those are weights; build the network"),
        ("model.pt", r"got str. Load it first: camtools.load_model\("),
    ):
        with pytest.raises(ModelError, match=words):
            wrap(given)


def test_a_network_that_could_be_quantised_is_not():
    model = torchvision.models.quantization.resnet18(weights=None, quantize=False).eval()
    assert wrap(model).decomposition.exact


def test_an_exported_program_says_its_size():
    inner = timm.create_model("test_resnet", num_classes=4).eval()
    program = torch.export.export(inner, (torch.randn(1, 3, 160, 160),))
    photo = np.zeros((40, 50, 3), np.uint8)
    with pytest.warns(UserWarning, match="its preprocessing is a guess, ImageNet's usual"):
        exp = explain(program, photo)
    assert exp.transform.input_size == (160, 160)


def test_what_holds_a_model_is_named():
    class Learner:
        def __init__(self, model):
            self.model = model

    class Pipeline(Learner):
        image_processor = object()

    with pytest.raises(ModelError, match=r"expected a torch.nn.Module, got Learner. Pass its attribute 'model', a Net"):
        explain(Learner(net()), X[0])
    with pytest.raises(ModelError, match=r"'model', a Net, and its image_processor as transform="):
        wrap(Pipeline(net()))


# The share of the logit


class ClassTokenAndMean(nn.Module):
    """Tokens with a class token before them, both of which reach the classifier, as in DINOv2's heads."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(16, 4)
        self.mix = nn.Linear(8, 8)

    def tokens(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([3 * self.mix(tokens.mean(1, keepdim=True)), tokens], 1))

    def forward(self, x):
        t = self.tokens(x)
        return self.fc(torch.cat([t[:, 0], t[:, 1:].mean(1)], 1))


def test_what_the_class_token_takes_is_told():
    model = ClassTokenAndMean().eval()
    cam_model = wrap(model)
    maps = cam_model.maps(X)
    t = model.tokens(X).detach()
    beside, through = t[:, 0] @ model.fc.weight[:, :8].T, t[:, 1:].mean(1) @ model.fc.weight[:, 8:].T
    torch.testing.assert_close(maps.mean((2, 3)), through)
    torch.testing.assert_close(through + beside + model.fc.bias, model(X))
    want = through[0].abs() / (through[0].abs() + beside[0].abs())
    found = cam_model.decomposition
    torch.testing.assert_close(torch.tensor(found.share), want.detach(), atol=1e-5, rtol=1e-4)
    assert f"maps hold {float(want.min()):.0%} to {float(want.max()):.0%} of the logits" in repr(found)
    explainer = camtools.Explainer(model)  # looks at noise of the model's own size first
    explainer(X[:1])
    assert explainer.model.decomposition.share == pytest.approx(found.share, rel=1e-3)


def test_all_of_it_elsewhere():
    assert wrap(net()).decomposition.share == (1.0,) * 4
    found = wrap(timm.create_model("test_convnext", num_classes=4).eval()).decomposition
    assert not found.exact and found.share == (1.0,) * 4 and "maps hold" not in repr(found)
