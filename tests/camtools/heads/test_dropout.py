import pytest
import torch

from camtools import ModelError
from camtools.heads import ADL, SequentialDropout

# One class, three maps of 1 x 4 cells. sigmoid(F) > 0.5 where F > 0.
MAPS = torch.tensor([[[[2.0, -1.0, -1.0, -3.0]], [[5.0, 4.0, -2.0, -1.0]], [[1.0, 1.0, 7.0, -6.0]]]])


def test_sequential_dropout_by_hand():
    want = torch.tensor([[[[2.0, 0, 0, 0]], [[0.0, 0, -2.0, -1.0]], [[0.0, 0, 0, -6.0]]]])
    torch.testing.assert_close(SequentialDropout(3)(MAPS), want)


def test_classes_do_not_see_each_other():
    other = -MAPS
    both = SequentialDropout(3)(torch.cat([MAPS, other], 1))
    assert torch.equal(both[:, :3], SequentialDropout(3)(MAPS))
    assert torch.equal(both[:, 3:], SequentialDropout(3)(other))


def test_it_stops_once_nothing_is_left():
    maps = torch.cat([torch.ones(1, 1, 2, 2), -torch.ones(1, 3, 2, 2)], 1)
    dropped = SequentialDropout(4)(maps)
    assert torch.equal(dropped[:, 0], maps[:, 0]) and not dropped[:, 1:].any()


def test_delta_is_a_threshold_on_the_sigmoid():
    delta = float(torch.tensor(4.5).sigmoid())  # only F > 4.5 counts as important
    dropped = SequentialDropout(3, delta)(MAPS)
    assert dropped[0, 0].tolist() == [[0, 0, 0, 0]]
    assert dropped[0, 1].tolist() == [[0, 4, -2, -1]] and dropped[0, 2].tolist() == [[0, 1, 0, -6]]


@pytest.mark.parametrize(
    "layer", [SequentialDropout(3), SequentialDropout(3, learnable=True), ADL(), ADL(per_map=True)]
)
def test_in_eval_mode_maps_pass(layer):
    assert layer.eval()(MAPS) is MAPS


def test_masks_carry_no_gradient():
    maps = MAPS.clone().requires_grad_()
    SequentialDropout(3)(maps).sum().backward()
    assert torch.equal(maps.grad, (SequentialDropout(3)(MAPS) != 0).float())


def test_a_learnable_delta_is_the_same_forward_and_has_the_surrogates_gradient():
    layer = SequentialDropout(1, 0.5, learnable=True)
    maps = torch.tensor([[[[0.2, -0.1]]]], requires_grad=True)
    out = layer(maps)
    torch.testing.assert_close(out, torch.tensor([[[[0.2, 0.0]]]]))
    out.sum().backward()
    score = maps.detach().sigmoid()
    soft = ((0.5 - score) / 0.1).sigmoid()
    by_delta = -(soft * (1 - soft) / 0.1 * maps.detach()).sum()  # F (1 - D), dD / d delta
    torch.testing.assert_close(layer.logit.grad, by_delta * 0.25)  # d delta / d logit at 0.5
    assert maps.grad[0, 0].tolist() == [[1, 0]]
    assert list(layer.state_dict()) == ["logit"] and not SequentialDropout(3).state_dict()


def test_gradcheck_away_from_the_threshold():
    maps = MAPS.double().requires_grad_()
    assert torch.autograd.gradcheck(SequentialDropout(3), maps)


def test_adl_drops_the_strongest_region_or_stresses_it():
    f = torch.tensor([[[[1.0, 2.0, 9.5, 10.0]], [[1.0, 4.0, 9.5, 10.0]]]])
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])  # attention 1, 3, 9.5, 10: below 9 stays
    torch.testing.assert_close(ADL(drop_rate=1.0)(f), f * mask)
    attention = torch.tensor([1.0, 3.0, 9.5, 10.0])
    torch.testing.assert_close(ADL(drop_rate=0.0)(f), f * attention.sigmoid())
    assert torch.autograd.gradcheck(ADL(drop_rate=0.0), f.double().requires_grad_())


def test_adl_draws_with_its_rate():
    f = torch.ones(1, 1, 1, 2) * torch.tensor([1.0, 10.0])
    drops = sum(int(ADL(0.75)(f)[0, 0, 0, 1] == 0) for _ in range(400))
    assert 260 < drops < 340


def test_adl_per_map_draws_for_every_map():
    f = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2).expand(2, 500, 1, 2)
    out = ADL(0.75, per_map=True)(f)
    dropped = out[..., 1] == 0
    assert 0.7 < float(dropped.float().mean()) < 0.8
    torch.testing.assert_close(out[~dropped.squeeze(-1)][0, 0], torch.sigmoid(f[0, 0, 0]) * f[0, 0, 0])
    assert out[dropped.squeeze(-1)][0, 0].tolist() == [-1, 0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"delta=1\.0: expected a number, 0 < delta < 1"):
        SequentialDropout(3, 1.0)
    with pytest.raises(ModelError, match=r"M=0: expected a whole number"):
        SequentialDropout(0)
    with pytest.raises(ModelError, match=r"shape \(1, 3, 1, 4\): expected \(batch, classes \* 2, rows, columns\)"):
        SequentialDropout(2)(MAPS)
    with pytest.raises(ModelError, match=r"gamma=1\.1: expected a number, 0 <= gamma <= 1"):
        ADL(gamma=1.1)
    with pytest.raises(ModelError, match=r"drop_rate=-1: expected a number, 0 <= drop_rate <= 1"):
        ADL(-1)


def test_adl_per_map_counts_from_the_maps_own_minimum():
    f = torch.tensor([[0.01, 0.02, 0.029, 0.03], [-5.0] * 4]).view(1, 2, 1, 4)  # a fresh map, a constant one
    out = ADL(1.0, gamma=0.9, per_map=True)(f)
    torch.testing.assert_close(out[0, 0], torch.tensor([[0.01, 0.02, 0.0, 0.0]]))
    assert torch.equal(out[0, 1], f[0, 1])
