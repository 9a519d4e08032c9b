import copy
import functools
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn
from torchvision import models as tv

import camtools
from camtools import ModelError, Pipeline, Preprocess, wrap
from camtools.heads import GAP, TAP, WGAP, ExCAM, HeadedModel, Wildcat, replace_head
from camtools.steps import NWC

X = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", drop_rate=0.3).eval()


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("head", [GAP(), TAP(), TAP(0.05, relative=False), WGAP()], ids=str)
def test_the_models_own_classifier_follows_the_pooling(resnet, head):
    headed, f = replace_head(resnet, head), wrap(resnet).features(X)
    torch.testing.assert_close(headed(X), resnet.fc(head(f)))
    torch.testing.assert_close(headed.features(X), f, rtol=0, atol=0)
    found = wrap(headed)
    assert found.decomposition.exact and found.decomposition.adapter == "described"
    assert found.decomposition.head == f"{head!r} pooling + Linear(96, 1000)"
    torch.testing.assert_close(found.maps(X, [7, 9]), wrap(resnet).maps(X, [7, 9]))
    assert found.class_weights is headed.classifier.weight


def test_the_same_pooling_gives_the_same_logits(resnet):
    torch.testing.assert_close(replace_head(resnet, GAP())(X), resnet(X), rtol=0, atol=1e-6)


def test_threads_take_turns(resnet):
    headed = replace_head(resnet, TAP())
    inputs = [X[:1], X[1:]]
    alone = [headed(x) for x in inputs]
    last = headed.body.get_submodule(headed.origin.spec.layer)
    last.register_forward_hook(lambda *_: time.sleep(0.05))  # F is there, and the other thread may run
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(headed, inputs))
    assert not torch.allclose(*alone)
    torch.testing.assert_close(together, alone)


def test_it_compiles_as_one_graph(resnet):
    headed = replace_head(resnet, TAP())
    compiled = torch.compile(headed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), headed(X))


def test_the_callers_model_stays_as_it_was(resnet):
    model = copy.deepcopy(resnet).train()
    model.fc.weight.requires_grad_(False)
    before, hooks = state_of(model), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    headed = replace_head(model, functools.partial(ExCAM, M=2), classes=4, output_stride=16)
    headed(X).sum().backward()
    with torch.no_grad():
        for parameter in headed.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters()) and all(m.training for m in model.modules())
    assert isinstance(model.fc, nn.Linear) and model.drop_rate == 0.3 and headed.training


def test_a_wildcat_brings_its_own_classifier(resnet):
    headed = replace_head(resnet, functools.partial(Wildcat, M=3), classes=5)
    found = wrap(headed)
    assert found.decomposition.exact and found.class_weights.shape == (5, 96)
    want = headed.head.maps(headed.features(X)).mean(2) - headed.head.bias[:, None, None]
    torch.testing.assert_close(found.maps(X), want)
    assert not any("classifier" in key or "fc" in key for key in headed.state_dict())
    assert headed.class_names is None and headed(X).shape == (2, 5)
    assert found.decomposition.head.startswith("Linear(96, 5) at every position + WildcatPool(")


def test_the_models_dropout_is_kept_in_training(resnet):
    assert replace_head(resnet, TAP()).drop.p == 0.3
    headed = replace_head(tv.mobilenet_v2().eval(), TAP())
    assert headed.drop.p == 0.2
    assert not any(isinstance(m, nn.Dropout) for m in headed.body.modules())
    headed.head = pooled = nn.Sequential(GAP())
    headed.train()
    f = torch.rand(1, 1280, 2, 2) + 1
    headed.classifier = nn.Identity()
    dropped = headed.logits_of(f) == 0
    assert 0.1 < float(dropped.float().mean()) < 0.3
    torch.testing.assert_close(headed.logits_of(f).max(), (pooled(f) / 0.8).max(), rtol=0.2, atol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("test_resnet"),
        lambda: timm.create_model("test_efficientnet"),
        lambda: tv.mobilenet_v2(),
        lambda: tv.googlenet(init_weights=False),
    ],
    ids=["resnet", "efficientnet", "mobilenet_v2", "googlenet"],
)
@pytest.mark.parametrize("head", [TAP(), functools.partial(ExCAM, M=2, learnable=True)], ids=["tap", "excam"])
def test_every_parameter_is_used(build, head):
    headed = replace_head(build(), head, classes=6).train()
    headed(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert [name for name, p in headed.named_parameters() if p.grad is None] == []


def test_it_trains_under_ddp_without_looking_for_unused_parameters(resnet, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(replace_head(resnet, Wildcat, classes=3).train())
        for _ in range(2):  # the second forward complains of what the first backward left out
            model(X).sum().backward()
        assert wrap(model.eval()).decomposition.exact
    finally:
        dist.destroy_process_group()


def test_data_parallel_is_refused(resnet):
    with pytest.raises(ModelError, match=r"cannot run a HeadedModel on several GPUs. Use DistributedDataParallel"):
        replace_head(resnet, TAP())._replicate_for_data_parallel()


def test_copies_and_pickles_are_models_of_their_own(resnet):
    headed = replace_head(resnet, TAP())
    want = headed(X)
    for other in (copy.deepcopy(headed), pickle.loads(pickle.dumps(headed))):
        assert torch.equal(other(X), want)
        with torch.no_grad():
            other.body.conv1[0].weight.zero_()
        assert not torch.equal(other(X), want) and torch.equal(headed(X), want)


def test_it_compiles_in_one_graph(resnet):
    headed = replace_head(resnet, TAP())
    compiled = torch.compile(headed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), headed(X))
    assert wrap(compiled).decomposition.exact


def test_autocast(resnet):
    headed = replace_head(resnet, TAP())
    with torch.autocast("cpu", torch.bfloat16):
        assert headed(X).dtype is torch.bfloat16
        assert wrap(headed).activations(X).decomposition.exact
    torch.testing.assert_close(headed(X), replace_head(resnet, TAP())(X))


def test_explain_and_pipelines_take_it(resnet):
    headed = replace_head(
        resnet, TAP(), class_names=[f"n{i}" for i in range(1000)], preprocess=Preprocess.imagenet(160)
    )
    image = (torch.rand(180, 200, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
    exp = camtools.explain(headed, image, target="n7", pipeline=Pipeline([NWC()]))
    assert exp.label == 7 and exp.name == "n7" and exp.exact and exp.map.shape == (180, 200)


def test_swapping_again(resnet):
    first = replace_head(resnet, TAP(), output_stride=16)
    second = replace_head(first, GAP())
    assert isinstance(second, HeadedModel) and not isinstance(second.body, HeadedModel)
    torch.testing.assert_close(second(X), first.classifier(first.features(X).mean((2, 3))))
    assert second.origin.output_stride == 16 and wrap(second).decomposition.grid == (10, 10)
    assert second.drop.p == 0.3 and torch.equal(first(X), replace_head(resnet, TAP(), output_stride=16)(X))


def test_class_maps_without_a_classifier():
    model = tv.squeezenet1_1(num_classes=4).eval()
    x = torch.randn(1, 3, 128, 128)
    headed = replace_head(model, TAP())
    torch.testing.assert_close(headed(x), TAP()(wrap(model).features(x)))
    assert headed.classifier is None and wrap(headed).decomposition.exact
    assert replace_head(model, TAP(), classes=3)(x).shape == (1, 3)


def test_a_forward_whose_rest_counts_its_images(resnet):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)

        def forward(self, x):
            f = self.conv(x).relu_()
            return self.fc(f.mean((2, 3)).view(x.shape[0], 8))

    model = Counting().eval()
    headed = replace_head(model, GAP())
    assert headed.origin.tail == "all"
    torch.testing.assert_close(headed(X), model(X))


def test_a_transformer_that_ends_before_its_class_token():
    model = timm.create_model("test_vit", num_classes=5).eval()  # its blocks hand a mask to what is taken out
    headed = replace_head(model, TAP(), conv=0)
    torch.testing.assert_close(headed.features(X), wrap(model).features(X))
    assert wrap(headed).decomposition.exact


def test_a_fresh_classifier(resnet):
    fresh = replace_head(resnet, TAP(), keep_classifier=False)
    assert fresh.classifier.weight.shape == (1000, 96)
    assert not torch.equal(fresh.classifier.weight, resnet.fc.weight)
    assert replace_head(resnet, TAP(), classes=7).classifier.out_features == 7


def test_what_cannot_be_is_refused(resnet):
    with pytest.raises(ModelError, match=r"Identity.* gave shape \(2, 96, 5, 5\) .*expected \(2, 96\)"):
        replace_head(resnet, nn.Identity())
    with pytest.raises(ModelError, match=r"the head's weight is \(4, 96\): expected \(1000, 96\)"):
        replace_head(resnet, Wildcat(96, 4))
    with pytest.raises(ModelError, match=r"cannot be called with \(96, 1000\)"):
        replace_head(resnet, TAP(theta=0.1).extra_repr)
    with pytest.raises(ModelError, match=r"head is 'tap': expected a module"):
        replace_head(resnet, "tap")
    with pytest.raises(ModelError, match=r"classes=0: expected a whole number"):
        replace_head(resnet, TAP(), classes=0)
    with pytest.raises(ModelError, match=r"class_names has 2 names: expected 1000"):
        replace_head(resnet, TAP(), class_names=["a", "b"])
    with pytest.raises(ModelError, match=r"model is a str"):
        replace_head("resnet", TAP())
    with pytest.raises(ModelError, match=r"trained layers between the features and the classifier \(norm\)"):
        replace_head(Normed().eval(), TAP())


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x).mean((2, 3))))

    def feature_spec(self):
        return camtools.model.FeatureSpec("conv", classifier="fc", pool="avg")
