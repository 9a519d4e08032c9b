import pytest
import torch

from camtools import ModelError
from camtools.heads import ADL, ClassWisePool, ExCAM, SequentialDropout, Wildcat, WildcatPool

MAP = torch.tensor([3.0, 1.0, 7.0, -2.0, 0.0, 5.0, 4.0, -6.0, 2.0, 6.0]).view(1, 1, 2, 5)


@pytest.mark.parametrize(
    ("pool", "want"),
    [
        (WildcatPool(), 6.5 + 0.6 * -4),  # 2 of 10 positions each
        (WildcatPool(halve=True), (6.5 + 0.6 * -4) / 2),
        (WildcatPool(1, alpha=1.0), 7 - 6),
        (WildcatPool(1.0, k_min=0), 2.0),
        (WildcatPool(1, k_min=1.0, alpha=0.5), 7 + 0.5 * 2),
        (WildcatPool(0.25, k_min=0), 6.0),  # 2.5 rounds up to 3
        (WildcatPool(0.01, k_min=0), 7.0),  # at least 1
        (WildcatPool(99, k_min=0), 2.0),  # at most all
    ],
    ids=str,
)
def test_pooling_by_hand(pool, want):
    assert float(pool(MAP)) == pytest.approx(want)


@pytest.mark.parametrize("pool", [WildcatPool(), WildcatPool(3, 2, -0.4, halve=True)], ids=str)
def test_gradients_are_right(pool):
    maps = torch.randperm(60).double().view(2, 3, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(pool, maps)


def test_reduced_precision_is_computed_in_float32():
    maps = torch.randn(2, 3, 28, 28).bfloat16()
    assert torch.equal(WildcatPool()(maps), WildcatPool()(maps.float()).bfloat16())


def test_class_wise_pool_averages_neighbours():
    maps = torch.arange(6.0).view(1, 6, 1, 1)
    assert ClassWisePool(3)(maps).flatten().tolist() == [1, 4]
    with pytest.raises(ModelError, match=r"shape \(1, 6, 1, 1\): expected \(batch, classes \* 4"):
        ClassWisePool(4)(maps)


def test_the_head_is_linear_before_its_pooling():
    head, f = Wildcat(5, 3, M=4).double(), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    maps = torch.einsum("kc,bchw->bkhw", head.weight, f) + head.bias[:, None, None]
    torch.testing.assert_close(head(f), head.map_pool(maps))
    torch.testing.assert_close(head.maps(f).mean(2), maps)
    assert head.maps(f).shape == (2, 3, 4, 3, 4)
    torch.testing.assert_close(head.maps(f)[:, 2, 1], head.conv(f)[:, 2 * 4 + 1])


def test_excam_drops_in_training_only():
    head, f = ExCAM(5, 3, M=4), torch.randn(2, 5, 3, 4)
    plain = Wildcat(5, 3, M=4)
    plain.conv.load_state_dict(head.conv.state_dict())
    want = plain.map_pool(plain.class_pool(SequentialDropout(4)(plain.conv(f))))
    torch.testing.assert_close(head(f), want)
    torch.testing.assert_close(head.eval()(f), plain(f))
    assert not torch.allclose(want, plain(f))


def test_every_parameter_of_a_learnable_excam_gets_a_gradient():
    head = ExCAM(5, 3, M=4, learnable=True)
    head(torch.randn(2, 5, 3, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_adl_stands_before_the_class_wise_mean():
    head, f = Wildcat(5, 3, M=2, adl=ADL(drop_rate=0.0, per_map=True)), torch.randn(2, 5, 3, 4)
    maps = head.conv(f)
    torch.testing.assert_close(head(f), head.map_pool(head.class_pool(maps * maps.sigmoid())))


@pytest.mark.parametrize("k", [1.5, -1, True, "all", -0.1])
def test_impossible_numbers_of_positions(k):
    with pytest.raises(ModelError, match=r"k_max is .*expected a share of the positions"):
        WildcatPool(k)


def test_other_errors():
    with pytest.raises(ModelError, match=r"k_max is 0: expected a share"):
        WildcatPool(0, k_min=1)
    with pytest.raises(ModelError, match=r"alpha is nan"):
        WildcatPool(alpha=float("nan"))
    with pytest.raises(ModelError, match=r"classes=0: expected a whole number"):
        Wildcat(5, 0)
