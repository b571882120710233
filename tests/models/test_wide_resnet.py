"""The wide residual network against its definition."""

from __future__ import annotations

import pytest
import torch

from fastmem.errors import InputError
from fastmem.models import build_model, count_parameters
from fastmem.models.wide_resnet import WideResNet


def parameters_by_hand(depth: int, widen: int, classes: int) -> int:
    """Convolutions without bias, two values a normalised channel, a linear output (Zagoruyko and Komodakis, table 1)."""
    blocks, width = (depth - 4) // 6, 16
    total = 3 * 16 * 9
    for size in (16 * widen, 32 * widen, 64 * widen):
        for block in range(blocks):
            total += 2 * width + width * size * 9 + 2 * size + size * size * 9
            total += width * size if block == 0 else 0
            width = size
    return total + 2 * width + width * classes + classes


@pytest.mark.parametrize(("depth", "widen"), [(28, 2), (16, 4), (10, 2)])
def test_has_the_size_of_its_definition(depth: int, widen: int) -> None:
    model = build_model("wrn28-2", (3, 32, 32), 10, seed=0, depth=depth, widen=widen)
    assert count_parameters(model) == parameters_by_hand(depth, widen, 10)


def test_28_2_has_the_published_size() -> None:
    assert round(count_parameters(build_model("wrn28-2", (3, 32, 32), 10, seed=0)) / 1e6, 1) == 1.5


def test_a_block_whose_residual_vanishes_is_the_identity() -> None:
    model = WideResNet((3, 8, 8), 4, depth=16, widen=1)
    block = model.blocks[1]
    torch.nn.init.zeros_(block.get_submodule("conv2").weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_dropout_acts_in_training_alone() -> None:
    model, x = WideResNet((1, 8, 8), 4, depth=10, dropout=0.3), torch.randn(4, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("depth", "widen"), [(27, 2), (4, 2), (28, 0)])
def test_refuses_shapes_it_does_not_have(depth: int, widen: int) -> None:
    with pytest.raises(InputError, match="depth, widen"):
        WideResNet((3, 8, 8), 4, depth=depth, widen=widen)
