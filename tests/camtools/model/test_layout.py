import pytest
import torch

from camtools.errors import ModelError
from camtools.model.layout import Layout, is_grid, to_nchw, token_grid

GRID = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # 2 images, 3 channels, 4 rows, 5 columns
SIZE = (64, 80)


def test_nchw_is_the_same_object():
    assert to_nchw(GRID, Layout.NCHW, SIZE) is GRID


def test_nhwc():
    there = GRID.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(to_nchw(there, Layout.NHWC, SIZE), GRID)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_row_major_after_the_prefix(prefix):
    tokens = torch.cat([torch.full((2, prefix, 3), -1.0), GRID.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(to_nchw(tokens, Layout.NLC, SIZE, prefix), GRID)


def test_tokens_of_features_are_a_view_that_carries_gradients():
    tokens = torch.randn(1, 17, 3, requires_grad=True)
    to_nchw(tokens, Layout.NLC, (32, 32), 1)[0, 2, 1, 3].backward()
    assert tokens.grad.nonzero().tolist() == [[0, 1 + 1 * 4 + 3, 2]]


def test_tokens_that_fit_no_grid():
    with pytest.raises(ModelError, match=r"19 tokens \(after 1 prefix tokens\) fit no grid over an input of 32 x 48"):
        to_nchw(torch.zeros(1, 20, 3), Layout.NLC, (32, 48), 1)


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (196, (224, 224), (14, 14)),
        (49, (224, 224), (7, 7)),
        (20, (64, 80), (4, 5)),
        (20, (80, 64), (5, 4)),
        (512, (256, 512), (16, 32)),
        (64, (240, 240), (8, 8)),  # stride 32 rounded up
        (289, (240, 240), (17, 17)),  # stride 14 rounded down
        (98, (224, 448), (7, 14)),
        (197, (224, 224), None),
        (15, (32, 32), None),
    ],
)
def test_grid_of_tokens(tokens, size, grid):
    assert token_grid(tokens, size) == grid


@pytest.mark.parametrize(
    ("rows", "columns", "size", "expected"),
    [
        (7, 7, (224, 224), True),
        (2, 2, (32, 32), True),
        (1, 1, (224, 224), False),  # no positions left
        (1, 3, (32, 96), False),  # too few to tell where
        (7, 14, (224, 448), True),
        (14, 7, (224, 448), False),  # rows taken for columns
        (49, 64, (224, 224), False),  # tokens and channels
        (8, 10, (299, 299), False),
        (64, 7, (224, 224), False),
        (300, 300, (224, 224), False),  # larger than the image
        (9, 13, (288, 416), True),
        (8, 12, (299, 427), True),  # convolutions without padding lose cells
    ],
)
def test_is_grid(rows, columns, size, expected):
    assert is_grid(rows, columns, size) is expected
