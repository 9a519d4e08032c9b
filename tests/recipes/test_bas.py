"""`bas`: the losses by hand, what their gradients reach, and how the trained maps are read."""

import pytest
import torch
from torch import nn

import camtools
from camtools.datasets.scenes import SceneNet, Scenes
from camtools.errors import InputError, PipelineError
from camtools.heads import BAS
from camtools.steps import HeadMaps, State
from camtools_recipes.bas import BasConfig, BasRecipe, bas_losses


def head():
    """Scores: class 0 is the mean of F, class 1 half of it. M: sigmoid(F), sigmoid(-F)."""
    made = BAS(1, 2, width=1)
    with torch.no_grad():
        for layer in (made.conv, made.score, made.generator):
            layer.weight.zero_()
        made.conv.weight[0, 0, 1, 1] = 1.0
        made.score.weight[:, 0, 0, 0] = torch.tensor([1.0, 0.5])
        made.generator.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0])
    return made


F = torch.tensor([[[[2.0, 0.0]]]])


def test_losses_by_hand():
    losses = bas_losses(head(), F, torch.tensor([0]))
    inside = torch.tensor(2.0).sigmoid()  # M is .881 and .5
    torch.testing.assert_close(losses["logits"], torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(losses["class"], torch.tensor([1.0, 0.5]).logsumexp(0) - 1)
    torch.testing.assert_close(losses["guidance"], (torch.tensor([1.0, 0.5]) * inside).logsumexp(0) - inside)
    torch.testing.assert_close(losses["background"], 1 - inside)  # of the score 1, 2 (1 - M) / 2 is left
    torch.testing.assert_close(losses["area"], (inside + 0.5) / 2)


def test_the_background_moves_the_generator_alone():
    made, features = head(), F.clone().requires_grad_()
    bas_losses(made, features, torch.tensor([0]))["background"].backward()
    assert made.generator.weight.grad.abs().sum() > 0
    assert all(p.grad is None for name, p in made.named_parameters() if not name.startswith("generator"))
    gone = head()
    with torch.no_grad():
        gone.score.weight.zero_()
    loss = bas_losses(gone, F, torch.tensor([0]))["background"]
    loss.backward()
    assert float(loss) == 0 and torch.isfinite(gone.generator.weight.grad).all()  # S is 0: nothing to suppress


def test_maps_by_hand():
    step = HeadMaps().fitted(nn.ModuleDict({"head": head()}))
    state = State(features=F, labels=torch.tensor([[1, 0]]))
    torch.testing.assert_close(step(state).maps, torch.full((1, 2, 1, 2), 0.5))  # sigmoid(2) and sigmoid(-2)
    highest = BAS(1, 2, width=1, top_k=1)
    highest.load_state_dict(head().state_dict())
    one = torch.tensor([2.0, 0.0]).sigmoid().expand(1, 2, 1, 2)  # class 0 has the highest score, whatever is asked for
    torch.testing.assert_close(HeadMaps(highest)(state).maps, one)
    torch.testing.assert_close(
        head().foreground(F, torch.tensor([[1, 0]]))[0, :, 0], torch.tensor([[-2.0, 0], [2, 0]]).sigmoid()
    )
    assert step.fitted(nn.Linear(1, 1)) is step and repr(step) == "HeadMaps(BAS)"
    with pytest.raises(PipelineError, match=r"the head of Linear makes no maps"):
        HeadMaps().fitted(nn.Linear(1, 1))
    with pytest.raises(PipelineError, match=r"Linear makes no maps: expected a head such as camtools.heads.BAS"):
        HeadMaps(nn.Linear(1, 1))
    with pytest.raises(PipelineError, match=r"HeadMaps has no head yet"):
        HeadMaps()(state)


def test_a_run_from_its_start_to_its_file(tmp_path):
    torch.manual_seed(1)
    net, data = SceneNet(widths=(4, 4, 8, 8)).eval(), Scenes("train", 12, size=64)
    options = {"epochs": 1, "batch_size": 6, "conv": 5, "progress": False, "device": "cpu"}
    result = camtools.finetune("bas", net, data, out=tmp_path, **options)
    assert result.model.head.width == 5 and 0 < result.history[-1]["area"] < 1
    loaded = camtools.heads.load_headed(tmp_path / "best.safetensors", net)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(x), result.model(x), rtol=0, atol=0)
    found = camtools.explain(loaded, data[0].image, pipeline=result.pipeline, target=3)
    assert found.map.min() == 0 and found.map.max() == 1
    by_text = camtools.explain(loaded, data[0].image, pipeline="HeadMaps", target=3)  # a file's own maps, from anywhere
    torch.testing.assert_close(by_text.map, found.map, rtol=0, atol=0)
    assert not camtools.wrap(loaded).decomposition.exact  # a plain CAM is linearised
    with pytest.raises(InputError, match=r"bas needs one class per image"):
        BasRecipe(BasConfig(augment=("cutmix",))).check([], [])
