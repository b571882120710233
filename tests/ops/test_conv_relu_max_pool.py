"""Convolution, ReLU and pooling as one against PyTorch's three: values, gradients, threads, modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastmem.errors import InputError
from fastmem.ops import _native, explain, use_backend
from fastmem.ops._registry import select
from fastmem.ops.conv_relu_max_pool import conv_relu_max_pool

from .implementations import taken, ways

WAYS = ways("conv_relu_max_pool")
# Images, channels, height, width, outputs, kernel, padding: blocks and registers of every instruction set begun and
# filled, tiles cut into by the kernel's height and width, odd sizes, more images than parts.
CASES = {
    "one pixel wide": (2, 1, 2, 2, 1, (1, 1), (0, 0)),
    "first layer": (3, 1, 12, 9, 5, (5, 5), (2, 2)),
    "colours": (2, 3, 9, 8, 4, (5, 5), (2, 2)),
    "second layer": (2, 32, 6, 7, 35, (5, 5), (2, 2)),
    "many channels": (1, 70, 4, 4, 17, (5, 5), (2, 2)),
    "odd channels": (2, 19, 7, 6, 3, (3, 3), (1, 1)),
    "wide kernel": (2, 9, 6, 16, 3, (3, 13), (0, 1)),
    "tall kernel": (2, 2, 15, 5, 3, (7, 2), (0, 3)),
    "no padding": (2, 8, 7, 7, 2, (4, 3), (0, 0)),
    "many images": (150, 2, 4, 4, 2, (3, 3), (1, 1)),
    "no image": (0, 2, 4, 4, 2, (3, 3), (1, 1)),
}
Case = tuple[int, int, int, int, int, tuple[int, int], tuple[int, int]]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernel on each instruction set."""
    with taken(request.param):
        yield request.param


def operands(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, height, width, outputs, kernel, _ = case
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = normal(outputs, channels, *kernel) / (channels * kernel[0] * kernel[1]) ** 0.5
    x = normal(images, channels, height, width)
    return tuple(
        tensor.to(dtype=dtype).contiguous(
            memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        )
        for tensor in (x, weight, normal(outputs) / 4)
    )  # type: ignore[return-value]


def composed(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), 2)


def value_and_gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], padding: tuple[int, int]
) -> list[Tensor]:
    inputs = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    y = function(*inputs, padding)
    seeds = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * seeds).sum(), inputs)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_composition_in_float64(way: str, case: Case) -> None:
    tensors = operands(case)
    found = value_and_gradients(conv_relu_max_pool, tensors, case[-1])
    for a, b in zip(found, value_and_gradients(composed, tensors, case[-1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["first layer", "second layer", "many images"])
def test_float32_is_as_near_to_the_truth_as_torch(way: str, name: str) -> None:
    case = CASES[name]
    tensors = operands(case, torch.float32)
    found = value_and_gradients(conv_relu_max_pool, tensors, case[-1])
    truth = value_and_gradients(composed, tuple(tensor.double() for tensor in tensors), case[-1])
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_gradients_by_some_of_the_tensors(way: str) -> None:
    case = CASES["colours"]
    tensors = operands(case)
    expected = value_and_gradients(composed, tensors, case[-1])[1:]
    for wanted in range(3):
        inputs = [tensor.clone(memory_format=torch.preserve_format) for tensor in tensors]
        y = conv_relu_max_pool(*(t.requires_grad_(i == wanted) for i, t in enumerate(inputs)), case[-1])
        seeds = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (found,) = torch.autograd.grad((y * seeds).sum(), inputs[wanted])
        torch.testing.assert_close(found, expected[wanted], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_gradients_the_same_bits(way: str, case: Case) -> None:
    tensors = operands(case, torch.float32)
    expected = value_and_gradients(conv_relu_max_pool, tensors, case[-1])[0]
    assert torch.equal(conv_relu_max_pool(*tensors, case[-1]), expected)


def test_every_relu_off_gives_no_gradient(way: str) -> None:
    x, weight, bias = operands(CASES["second layer"])
    for gradient in value_and_gradients(conv_relu_max_pool, (x, weight, bias - 100), (2, 2))[1:]:
        assert not gradient.any()


def test_the_first_of_equal_outputs_gets_the_gradient(way: str) -> None:
    # Small integers: sums are exact in any order, and many outputs of a window equal.
    x, weight, bias = (tensor.mul(2).round_() for tensor in operands(CASES["first layer"]))
    found = value_and_gradients(conv_relu_max_pool, (x, weight, bias), (2, 2))
    for a, b in zip(found, value_and_gradients(composed, (x, weight, bias), (2, 2)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_nan_reaches_every_gradient_that_depends_on_it(way: str) -> None:
    x, weight, bias = operands(CASES["second layer"])
    x[0, 0, 3, 3] = torch.nan
    y, of_x, of_weight, of_bias = value_and_gradients(conv_relu_max_pool, (x, weight, bias), (2, 2))
    assert torch.equal(y.isnan(), composed(x, weight, bias, (2, 2)).isnan())
    assert y.isnan().any()
    assert of_weight[:, 0].isnan().any()
    assert of_x.isfinite().all()
    assert of_bias.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    case = (70, 8, 8, 8, 6, (5, 5), (2, 2))
    tensors = operands(case, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = value_and_gradients(conv_relu_max_pool, tensors, case[-1])
        torch.set_num_threads(threads)
        together = value_and_gradients(conv_relu_max_pool, tensors, case[-1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_gradients_of_first_and_second_order(way: str) -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in operands((2, 2, 5, 4, 3, (3, 3), (1, 1))))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv_relu_max_pool(x, weight, bias, (1, 1))

    assert torch.autograd.gradcheck(function, (x, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))


def test_the_references_own_gradients_are_autograds() -> None:
    case = CASES["odd channels"]
    x, weight, bias = operands(case)
    with use_backend("reference"):
        backend = select("conv_relu_max_pool", x, weight, bias, case[-1])
    y, winners = backend.forward(x, weight, bias, case[-1])
    seeds = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = value_and_gradients(composed, (x, weight, bias), case[-1])
    assert backend.backward is not None
    for of_x in (True, False):
        found = backend.backward(seeds, winners, x, weight, case[-1], of_x)
        assert (found[0] is None) is not of_x
        for a, b in zip((y, *found), expected, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "half", "autocast"])
def test_what_the_kernel_does_not_take_goes_to_torch(layout: str) -> None:
    tensors = operands(CASES["colours"], torch.float32)
    if layout == "half":
        tensors = tuple(tensor.bfloat16() for tensor in tensors)
    if layout == "contiguous":
        tensors = tuple(tensor.contiguous() for tensor in tensors)
    with torch.autocast("cpu", enabled=layout == "autocast"):
        found = value_and_gradients(conv_relu_max_pool, tensors, (2, 2))
        expected = value_and_gradients(composed, tensors, (2, 2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_works_under_transforms_and_the_compiler() -> None:
    x, weight, bias = operands((3, 2, 6, 6, 4, (3, 3), (1, 1)))
    expected = composed(x, weight, bias, (1, 1))
    mapped = torch.func.vmap(lambda image: conv_relu_max_pool(image[None], weight, bias, (1, 1))[0])(x)
    torch.testing.assert_close(mapped, expected)
    whole = torch.compile(conv_relu_max_pool, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x, weight, bias, (1, 1)), expected)


def test_whoever_watches_sees_the_convolution() -> None:
    tensors = [tensor.requires_grad_() for tensor in operands(CASES["colours"], torch.float32)]
    with FlopCounterMode(display=False) as counter:
        conv_relu_max_pool(*tensors, (2, 2)).sum().backward()
    forward = 2 * 2 * 4 * 9 * 8 * 75
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ("shapes", "padding", "argument"),
    [
        (((3, 4, 4), (1, 3, 3, 3), (1,)), (1, 1), "x"),
        (((1, 3, 4, 4), (1, 2, 3, 3), (1,)), (1, 1), "weight"),
        (((1, 3, 4, 4), (2, 3, 3, 3), (1,)), (1, 1), "bias"),
        (((1, 3, 4, 4), (1, 3, 4, 4), (1,)), (0, 0), "padding"),
    ],
)
def test_refuses_what_does_not_fit(
    shapes: tuple[tuple[int, ...], ...], padding: tuple[int, int], argument: str
) -> None:
    with pytest.raises(InputError, match=argument):
        conv_relu_max_pool(*(torch.zeros(shape) for shape in shapes), padding)


def test_the_kernel_runs_where_it_should() -> None:
    reason = _native.why_no_cpu("conv_relu_max_pool_backward")
    if reason is not None:
        pytest.skip(reason)
    tensors = operands(CASES["colours"], torch.float32)
    expected = "reference" if _native.cpu_module().isa() == "generic" else "cpu"
    assert explain("conv_relu_max_pool", *tensors, (2, 2)).chosen == expected
    assert (
        "channels-last" in explain("conv_relu_max_pool", tensors[0].contiguous(), *tensors[1:], (2, 2)).remarks["cpu"]
    )
