"""ReLU and max pooling in one pass against PyTorch's two, values and gradients, ties and NaN included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import _native, explain, use_backend
from fastmem.ops._registry import select
from fastmem.ops.relu_max_pool import relu_max_pool

from .implementations import taken, ways

WAYS = ways("relu_max_pool")
SHAPES = [(1, 1, 2, 2), (2, 3, 5, 4), (3, 32, 7, 9), (1, 17, 2, 3), (2, 8, 6, 6), (2, 33, 3, 2), (0, 4, 4, 4)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernel on each instruction set."""
    with taken(request.param):
        yield request.param


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.to(memory_format=torch.channels_last)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_relu_of_max_pool_and_max_pool_of_relu(way: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(shape, dtype)
    found = gradient(relu_max_pool, x)
    same(found, gradient(lambda x: F.relu(F.max_pool2d(x, 2)), x))
    same(found, gradient(lambda x: F.max_pool2d(F.relu(x), 2), x))


def test_the_first_of_equal_pixels_gets_the_gradient(way: str) -> None:
    x = images((4, 16, 6, 6), torch.float32).mul_(2).round_()
    assert (x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).sort(dim=-1).values.diff()[..., -1] == 0).any()
    same(gradient(relu_max_pool, x), gradient(lambda x: F.relu(F.max_pool2d(x, 2)), x))


def test_nan_infinities_and_zeros_do_as_in_torch(way: str) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0])
    choice = torch.randint(0, len(values), (8, 5, 4, 6), generator=torch.Generator().manual_seed(0))
    x = values[choice].to(memory_format=torch.channels_last)
    same(gradient(relu_max_pool, x), gradient(lambda x: F.relu(F.max_pool2d(x, 2)), x))


def test_the_kernel_names_the_winners_that_the_reference_names() -> None:
    x = images((3, 20, 7, 8), torch.float32).mul_(2).round_()
    with use_backend("reference"):
        reference = select("relu_max_pool", x)
    for a, b in zip(select("relu_max_pool", x).forward(x), reference.forward(x), strict=True):
        assert torch.equal(a, b)
    y, winners = reference.forward(x)
    expected = reference.backward(y, winners, x.shape)
    assert torch.equal(select("relu_max_pool", x).backward(y, winners, x.shape), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x = images((40, 32, 14, 14), torch.float32)
    expected = gradient(lambda x: F.relu(F.max_pool2d(x, 2)), x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    same(gradient(relu_max_pool, x), expected)
    torch.set_num_threads(before)


def test_gradients_of_first_and_second_order(way: str) -> None:
    x = images((2, 3, 4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(relu_max_pool, x)
    assert torch.autograd.gradgradcheck(relu_max_pool, x)


@pytest.mark.parametrize("layout", ["contiguous", "expanded", "half"])
def test_what_the_kernel_does_not_take_goes_to_torch(layout: str) -> None:
    x = images((2, 3, 4, 4), torch.float32)
    x = {"contiguous": x.contiguous(), "expanded": x[:1].expand(2, 3, 4, 4), "half": x.bfloat16()}[layout]
    same(gradient(relu_max_pool, x), gradient(lambda x: F.relu(F.max_pool2d(x, 2)), x))


def test_works_under_transforms_and_the_compiler() -> None:
    x = images((4, 8, 4, 4))
    expected = F.relu(F.max_pool2d(x, 2))
    each = torch.func.vmap(torch.func.jacrev(lambda x: relu_max_pool(x[None]).sum()))(x)
    assert torch.equal(each, gradient_of_sum(x))
    assert torch.equal(torch.compile(relu_max_pool, backend="eager", fullgraph=True)(x), expected)
    _, tangent = torch.func.jvp(relu_max_pool, (x,), (torch.ones_like(x),))
    assert torch.equal(tangent, (expected > 0).double())


def gradient_of_sum(x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(F.relu(F.max_pool2d(x, 2)).sum(), x)[0]


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 1, 4)])
def test_refuses_what_has_no_windows(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 x 2"):
        relu_max_pool(torch.zeros(shape))


def test_the_kernel_runs_where_it_should() -> None:
    if _native.why_no_cpu() is not None:
        pytest.skip(str(_native.why_no_cpu()))
    assert explain("relu_max_pool", images((2, 3, 4, 4))).chosen == "cpu"
    assert "channels-last" in explain("relu_max_pool", images((2, 3, 4, 4)).contiguous()).remarks["cpu"]
