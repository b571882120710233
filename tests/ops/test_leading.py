"""Leading dimensions merged for GPU kernels: every row of the merged form is the row of the original."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmem.ops._leading import broadcasts, leading, summed_over


def offsets(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Of every row in row-major order, by walking through the indices one by one."""
    return [
        sum(i * stride for i, stride in zip(index, strides, strict=True))
        for index in itertools.product(*map(range, sizes))
    ]


@st.composite
def operands(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two ``[*, 1]`` tensors that broadcast, with permuted, sliced and expanded leading dimensions."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    made = []
    for _ in range(2):
        own = [draw(st.sampled_from([size, 1])) for size in shape]
        order = draw(st.permutations(range(len(own))))
        base = torch.zeros([own[d] * 2 for d in order] + [1])
        view = base.permute([order.index(d) for d in range(len(own))] + [len(own)])
        for d, size in enumerate(own):
            view = (
                view.narrow(d, 0, size) if draw(st.booleans()) else view[(slice(None),) * d + (slice(0, 2 * size, 2),)]
            )
        if own and draw(st.booleans()):
            dim = draw(st.integers(0, len(own) - 1))
            view = view.narrow(dim, 0, min(1, own[dim])).expand(*own, 1) if own[dim] else view
        made.append(view)
    return made[0], made[1]


@settings(deadline=None, derandomize=True)
@given(pair=operands())
def test_merged_rows_are_the_rows(pair: tuple[Tensor, Tensor]) -> None:
    shape, sizes, strides = leading(*pair)
    assert shape == torch.broadcast_shapes(pair[0].shape[:-1], pair[1].shape[:-1])
    for operand, own in zip(pair, strides, strict=True):
        expanded = operand.expand(*shape, 1)
        assert offsets(sizes, own) == offsets(shape, expanded.stride()[:-1])


@settings(deadline=None, derandomize=True)
@given(pair=operands())
def test_every_row_is_summed_once(pair: tuple[Tensor, Tensor]) -> None:
    operand, other = pair
    shape = leading(operand, other).shape
    if not broadcasts(operand, shape) or shape.numel() == 0:
        return
    kept, summed, (own, others), rows = summed_over(operand, other)
    sizes = [*kept, *summed]
    assert sorted(offsets(sizes, rows)) == list(range(shape.numel()))
    assert all(stride == 0 for stride in own[len(kept) :])
    # The rows kept are the operand's, in order.
    assert offsets(kept, own[: len(kept)]) == offsets(operand.shape[:-1], operand.stride()[:-1])
    # And each broadcast row meets the right row of the other operand.
    by_row = dict(zip(offsets(sizes, rows), offsets(sizes, others), strict=True))
    expanded = other.expand(*shape, 1)
    assert [by_row[row] for row in range(shape.numel())] == offsets(shape, expanded.stride()[:-1])


@pytest.mark.parametrize(
    ("p_shape", "q_shape", "sizes"),
    [
        ((5, 10), (5, 10), [5]),
        ((2, 3, 4, 10), (2, 3, 4, 10), [24]),
        ((6, 1, 10), (6, 5, 10), [6, 5]),
        ((1, 1, 10), (6, 5, 10), [30]),
        ((6, 1, 10), (1, 5, 10), [6, 5]),
        ((10,), (10,), []),
        ((1, 1, 10), (1, 1, 10), []),
    ],
)
def test_as_few_dimensions_as_the_strides_allow(
    p_shape: tuple[int, ...], q_shape: tuple[int, ...], sizes: list[int]
) -> None:
    assert leading(torch.zeros(p_shape), torch.zeros(q_shape)).sizes == sizes


def test_a_transposed_view_keeps_its_dimensions() -> None:
    assert leading(torch.zeros(3, 4, 10).transpose(0, 1)).sizes == [4, 3]
