"""3xTF32 products where there is no tensor core: products that round as one does, and what each precision costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

import fastmem
from fastmem.errors import InputError
from fastmem.ops._kkt import products
from fastmem.ops._kkt.network import KktNetwork, Layer
from fastmem.ops._kkt.problem import Problem
from fastmem.ops._kkt.products import split, split_product, tf32
from fastmem.ops.kkt_residual import forward_arguments, kkt_residual
from fastmem.ops.reference.kkt_residual import closed_form
from fastmem.ops.triton import interpreted


def by_tensor_cores(a: Tensor, b: Tensor) -> Tensor:
    """Operands rounded to TF32, sums in float32."""
    return tf32(a) @ tf32(b)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product", by_tensor_cores)


class SingleTf32(Problem):
    """What one product of tensor cores would make of a problem."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return by_tensor_cores(a, b)

    def up(self, a: Tensor, layer: Layer) -> Tensor:
        return by_tensor_cores(a, layer.weight.mT)

    def down(self, d: Tensor, layer: Layer) -> Tensor:
        return by_tensor_cores(d, layer.weight)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_rounding_keeps_ten_bits() -> None:
    # 1 + 2^-10 is the number after 1; half of that distance goes away from zero, less than half stays.
    given = [1.0, 1 + 2**-10, 1 + 2**-11, -1 - 2**-11, 1 + 2**-12, 2 - 2**-12, 3e38 * 1.13, 0.0, float("inf")]
    wanted = [1.0, 1 + 2**-10, 1 + 2**-10, -1 - 2**-10, 1.0, 2.0, 3e38 * 1.13, 0.0, float("inf")]
    found = tf32(torch.tensor(given))
    assert found.tolist() == pytest.approx(wanted, rel=2**-11)
    assert found[:6].tolist() == wanted[:6]
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).exp()
    rounded = tf32(x)
    assert not (rounded.view(torch.int32) & 0x1FFF).any()
    assert float(((rounded - x) / x).abs().max()) <= 2**-11
    # No TF32 number is nearer.
    neighbours = torch.stack([(rounded.view(torch.int32) + step).view(torch.float32) for step in (-0x2000, 0x2000)])
    assert bool(((neighbours - x).abs() >= (rounded - x).abs()).all())


def test_the_parts_add_up_and_nan_stays() -> None:
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    parts = split(x)
    assert torch.equal(parts.high + parts.low, x)
    assert float(((tf32(parts.low) + parts.high.double() - x) / x).abs().max()) <= 2**-21
    assert torch.equal(split(x.mT).high, parts.mT.high)
    odd = torch.tensor([float("nan"), -float("nan"), float("inf")])
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)])
    assert bool(split(odd).low.isnan().all())


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("shapes", [((30, 200), (200, 20)), ((3, 30, 200), (200, 20)), ((3, 30, 200), (3, 200, 20))])
def test_three_products_are_as_good_as_float32(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(2)
    a, b = (torch.randn(shape) for shape in shapes)
    exact = a.double() @ b.double()
    assert error(a @ b, exact) < 1e-6
    assert error(split_product(a, b), exact) < 1e-6
    assert error(split_product(split(a), split(b)), exact) < 1e-6
    assert error(by_tensor_cores(a, b), exact) > 1e-4
    # Without one of the small products nothing is won: both are needed.
    assert error(by_tensor_cores(*(split(each).high for each in (a, b))) + split(a).low @ split(b).high, exact) > 5e-5


def test_what_torch_may_do_outside_is_as_before() -> None:
    flags, seen = torch.backends.cuda.matmul, []
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        try:
            before = (flags.fp32_precision, flags.allow_tf32)
            with suppress(KeyError), products._tensor_cores():
                seen.append(flags.allow_tf32)
                raise KeyError
            assert (flags.fp32_precision, flags.allow_tf32) == before
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision("highest")
    assert seen == [True, True]


def cancelling(closeness: float) -> tuple[nn.Sequential, dict[str, Tensor], Tensor, Tensor]:
    """A network, targets that its sums of gradients reach up to ``closeness``, candidates and coefficients."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 70, bias=False), nn.ReLU(), nn.Linear(70, 1)
    ).eval()
    x, c = torch.randn(20, 60), torch.rand(20)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    z1 = x.double() @ weights["0.weight"].T + weights["0.bias"]
    a1 = z1.relu()
    z2 = a1 @ weights["2.weight"].T
    d2 = c.double()[:, None] * weights["4.weight"] * torch.sigmoid(20 * z2)
    d1 = d2 @ weights["2.weight"] * torch.sigmoid(20 * z1)
    sums = {
        "0.weight": d1.T @ x.double(),
        "0.bias": d1.sum(0),
        "2.weight": d2.T @ a1,
        "4.weight": c.double()[None] @ z2.relu(),
        "4.bias": c.double().sum()[None],
    }
    noise = {name: torch.randn_like(value) * value.abs().mean() for name, value in sums.items()}
    return model, {name: (value + closeness * noise[name]).float() for name, value in sums.items()}, x, c


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("method", ["gram", "direct"])
def test_what_each_precision_costs_where_the_residual_cancels(method: str) -> None:
    model, targets, x, c = cancelling(1e-3)
    exact_model = cancelling(1e-3)[0].double()
    wide = {name: value.double() for name, value in targets.items()}
    exact = kkt_residual(exact_model, x.double(), c.double(), alpha=20.0, targets=wide, method="autograd")
    (problem,) = forward_arguments(model, x, c, alpha=20.0, targets=targets, method=method)
    plain = {field.name: getattr(problem, field.name) for field in fields(Problem)}
    found = {
        "float32": closed_form(problem),
        "tf32": closed_form(SingleTf32(**plain)),
        "tf32x3": closed_form(Problem(**plain | {"precision": "tf32x3"})),
        "compensated": closed_form(Problem(**plain | {"precision": "compensated"})),
    }
    cost = {name: error(solved.grad_x[0], exact.grad_inputs) for name, solved in found.items()}
    # A thousandth of the sums is left, and TF32 holds a thousandth of each term.
    assert cost["tf32"] > 0.1
    assert cost["float32"] < 0.01
    assert cost["tf32x3"] < 4 * cost["float32"]
    assert cost["compensated"] < cost["float32"]
    first = {name: error(solved.losses[0, :1], exact.per_parameter["0.weight"][None]) for name, solved in found.items()}
    if method == "direct":
        assert first["tf32x3"] < 0.01 < first["tf32"]


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_gram_form_of_a_backend_takes_parts(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := fastmem.explain("kkt_residual").remarks[backend]).startswith("not avail"):
        pytest.skip(reason)
    if backend == "triton" and not interpreted():
        pytest.skip("Triton's kernels take CPU tensors in its interpreter only (TRITON_INTERPRET=1)")
    model, _, x, c = cancelling(1e-3)
    exact = kkt_residual(cancelling(1e-3)[0].double(), x.double(), c.double(), alpha=20.0, method="autograd")
    monkeypatch.setattr("fastmem.ops.kkt_residual._why_no_tf32", lambda network, method: None)
    with fastmem.use_backend(backend):
        found = kkt_residual(KktNetwork.of(model), x, c, alpha=20.0, method="gram", precision="tf32x3")
    assert error(found.grad_inputs, exact.grad_inputs) < 1e-5
    assert error(found.grad_coefficients, exact.grad_coefficients) < 1e-5


def test_a_cpu_has_no_tensor_cores() -> None:
    model, _, x, c = cancelling(1e-3)
    with pytest.raises(InputError, match="TF32 is a format of CUDA's tensor cores, and the model is on cpu"):
        kkt_residual(model, x, c, alpha=20.0, precision="tf32x3")
    from fastmem.ops.cpu.kkt_residual import _supports

    (problem,) = forward_arguments(model, x, c, alpha=20.0, method="gram")
    plain = {field.name: getattr(problem, field.name) for field in fields(Problem)}
    assert _supports(problem) is None
    assert _supports(Problem(**plain | {"precision": "tf32x3"})) == "a CPU has no TF32"
