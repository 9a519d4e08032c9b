import pytest
import torch
from torch import nn

from camtools import ModelError
from camtools.heads import GAP, TAP, WGAP

F = torch.tensor([[[[1.0, 2.0], [4.0, 10.0]], [[0.0, 0.0], [0.0, 0.0]], [[-4.0, -2.0], [-3.0, -1.0]]]])


@pytest.mark.parametrize(
    ("head", "want"),
    [
        (GAP(), [4.25, 0.0, -2.5]),
        (TAP(), [16 / 3, 0.0, 0.0]),  # t = 1, which the 1 itself is not above; then 0; then -0.1, above all
        (TAP(theta=0.0), [4.25, 0.0, 0.0]),
        (TAP(theta=0.3), [7.0, 0.0, 0.0]),
        (TAP(theta=3.0, relative=False), [7.0, 0.0, 0.0]),
        (TAP(theta=-2.5, relative=False), [4.25, 0.0, -1.5]),
    ],
)
def test_worked_out_by_hand(head, want):
    torch.testing.assert_close(head(F), torch.tensor([want]))


def test_wgap_weighs_by_the_softmax():
    f = torch.tensor([[[[0.0, 3.0]]]]).log().clamp_min(-1e9)  # exp: 0 and 3
    torch.testing.assert_close(WGAP()(f)[0, 0], torch.tensor(3.0).log())
    f = torch.tensor([[[[0.0, torch.log(torch.tensor(3.0))]]]])  # weights 1/4 and 3/4
    torch.testing.assert_close(WGAP()(f)[0, 0], 0.75 * torch.log(torch.tensor(3.0)))
    torch.testing.assert_close(WGAP(divide=True)(f)[0, 0], 0.375 * torch.log(torch.tensor(3.0)))


def test_wgap_of_large_activations_is_their_maximum_and_of_equal_ones_their_value():
    assert float(WGAP()(torch.tensor([[[[5e4, 1.0], [2.0, 3.0]]]]))) == 5e4
    torch.testing.assert_close(WGAP()(torch.full((2, 3, 5, 4), 1.5)), torch.full((2, 3), 1.5))


@pytest.mark.parametrize("head", [GAP(), TAP(), TAP(0.05, relative=False), WGAP(), WGAP(divide=True)], ids=str)
def test_gradients_are_right(head):
    f = torch.randn(2, 3, 4, 3, dtype=torch.float64).relu_().add_(0.2 * torch.rand(2, 3, 4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(head, f)


def test_tap_sends_its_gradient_to_the_cells_above_the_threshold():
    f = F.clone().requires_grad_()
    TAP()(f)[0, 0].backward()
    torch.testing.assert_close(f.grad[0, 0], torch.tensor([[0.0, 1 / 3], [1 / 3, 1 / 3]]))
    assert not f.grad[0, 1:].any()


@pytest.mark.parametrize("head", [GAP(), TAP(), WGAP()], ids=str)
def test_reduced_precision_is_computed_in_float32(head):
    f = (torch.rand(2, 8, 28, 28) * 4).bfloat16()
    assert head(f).dtype is torch.bfloat16
    torch.testing.assert_close(head(f), head(f.float()).bfloat16(), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(f.float()), head(f.float()).float(), rtol=0, atol=0)


@pytest.mark.parametrize("theta", [1.0, -0.1, float("nan")])
def test_a_threshold_that_leaves_nothing_is_refused(theta):
    with pytest.raises(ModelError, match=r"theta is .*expected 0 <= theta < 1, a share of the maximum"):
        TAP(theta)
    with pytest.raises(ModelError, match=r"expected a finite number"):
        TAP(float("inf"), relative=False)


def test_vectors_are_refused():
    with pytest.raises(ModelError, match=r"shape \(2, 3\): expected \(batch, channels, rows, columns\)"):
        TAP()(torch.zeros(2, 3))


def test_repr_reads_like_the_call():
    assert str(nn.Sequential(TAP(0.2), WGAP())) == (
        "Sequential(\n  (0): TAP(theta=0.2, relative=True)\n  (1): WGAP(divide=False)\n)"
    )
