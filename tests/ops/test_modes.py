"""The operators under PyTorch's machinery: compiler, export, fake tensors, transforms, higher derivatives.

It runs on the implementation that ``auto`` takes; where the reference promises more, on that too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fastmem.ops import _modes, kl_div, logit_margin, logit_stats, use_backend
from fastmem.ops.reference import kl_div as reference

from .implementations import stand_in_for_native

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
NUM_CLASSES = 7
FORWARD_ONLY = "first derivatives in reverse mode only.*use_backend"


def textbook_kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def textbook_margin(z: Tensor, y: Tensor) -> Tensor:
    prob = z.softmax(-1).gather(-1, y.expand(z.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return prob.log() - (1 - prob).log()


def textbook_stats(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    label = y.expand(z.shape[:-1]).unsqueeze(-1)
    margin = textbook_margin(z, y)
    log_prob = z.log_softmax(-1)
    hinge = (z.gather(-1, label) - z.scatter(-1, label, -torch.inf).amax(-1, keepdim=True)).squeeze(-1)
    loss = -log_prob.gather(-1, label).squeeze(-1)
    return margin, loss, hinge, log_prob.exp().amax(-1), -(log_prob.exp() * log_prob).sum(-1)


def weighted_sum(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """A loss that uses every output, each with a weight of its own."""
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    total = torch.zeros((), dtype=torch.float64)
    for weight, output in enumerate(outputs, start=1):
        total = total + weight * output.square().sum()
    return total


OPERATORS = {
    "kl_div": (kl_div, textbook_kl),
    "logit_margin": (logit_margin, textbook_margin),
    "logit_stats": (logit_stats, textbook_stats),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Each operator, and its textbook form for gentle arguments."""
    return OPERATORS[request.param]


def arguments(function: Callable[..., Tensor], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Two operands, [4, 3, 7] and what goes with it; float64."""
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(4, 3, NUM_CLASSES, generator=rng, dtype=torch.float64).to(device)
    if function is kl_div:
        return first, torch.randn(4, 1, NUM_CLASSES, generator=rng, dtype=torch.float64).to(device)
    return first, torch.randint(NUM_CLASSES, (4, 3), generator=rng).to(device)


def assert_same(actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    actual, expected = ([value] if isinstance(value, Tensor) else list(value) for value in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# --- compiler, export, tracing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_into_one_graph_with_its_backward(
    operator: tuple[Callable[..., Tensor], Callable[..., Tensor]], device: str
) -> None:
    function, textbook = operator
    first, second = arguments(function, device)
    leaves = [tensor.requires_grad_() for tensor in (first, second) if tensor.is_floating_point()]
    loss = torch.compile(lambda a, b: weighted_sum(function(a, b)), fullgraph=True, backend="aot_eager")(first, second)
    expected = weighted_sum(textbook(first, second))
    assert_same(loss, expected)
    assert_same(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves))


def test_compiles_with_the_default_compiler_and_dynamic_shapes() -> None:
    compiled = torch.compile(lambda p, q, t: kl_div(p.exp(), q, t).square().sum(), fullgraph=True, dynamic=True)
    for rows, temperature in ((3, 1.0), (5, 2.5)):
        p, q = torch.randn(2, rows, 6).unbind(0)
        p.requires_grad_()
        loss = compiled(p, q, temperature)
        expected = textbook_kl(p.exp() / temperature, q / temperature).square().sum()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        (gradient,), (exact,) = torch.autograd.grad(loss, p), torch.autograd.grad(expected, p)
        torch.testing.assert_close(gradient, exact, rtol=1e-3, atol=1e-4)


def test_a_compiled_function_follows_the_setting_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def forward(*args: Any) -> Any:
        ran.append("stand-in")
        return reference.forward(*args)

    stand_in_for_native(monkeypatch, "kl_div", forward=forward)
    compiled = torch.compile(kl_div, fullgraph=True, backend="eager")
    p, q = torch.randn(2, 3, 5).unbind(0)
    with use_backend("reference"):
        compiled(p, q)
    assert ran == []
    compiled(p, q)
    assert ran == ["stand-in"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p_shape", [(4, 3, 5), (4, 1, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needs_grad", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_opcheck_kl_div(
    device: str, p_shape: tuple[int, ...], dtype: torch.dtype, needs_grad: tuple[bool, bool]
) -> None:
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(p_shape, generator=rng).to(device, dtype).mT.contiguous().mT.requires_grad_(needs_grad[0])
    q = torch.randn(4, 3, 5, generator=rng).to(device, dtype).requires_grad_(needs_grad[1])
    torch.library.opcheck(torch.ops.fastmem.kl_div_forward.default, (p, q, 1.5))
    saved = [tensor.detach() for tensor in torch.ops.fastmem.kl_div_forward(p, q, 1.5)]
    grad = torch.ones_like(saved[0])
    torch.library.opcheck(
        torch.ops.fastmem.kl_div_backward.default, (grad, p.detach(), q.detach(), *saved, 1.5, *needs_grad)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("needs_grad", [True, False])
def test_opcheck_logit_stats(device: str, dtype: torch.dtype, needs_grad: bool) -> None:
    z, y = arguments(logit_stats, device)
    z = z.to(dtype).mT.contiguous().mT.requires_grad_(needs_grad)
    for labels in (y, y[:1]):
        torch.library.opcheck(torch.ops.fastmem.logit_stats_forward.default, (z, labels))
        torch.library.opcheck(torch.ops.fastmem.logit_margin_forward.default, (z, labels))
    grad = torch.ones_like(logit_margin(z.detach(), y))
    torch.library.opcheck(torch.ops.fastmem.logit_stats_backward.default, (z.detach(), y, grad, None, grad, None, None))


def test_fake_meta_and_proxy_tensors(operator: tuple[Callable[..., Tensor], Callable[..., Tensor]]) -> None:
    function, _ = operator
    first, second = arguments(function)
    with FakeTensorMode() as mode:
        fake = function(mode.from_tensor(first), mode.from_tensor(second))
    meta = function(first.to("meta"), second.to("meta"))
    real = function(first, second)
    if isinstance(real, Tensor):
        fake, meta, real = [fake], [meta], [real]
    for a, b, c in zip(fake, meta, real, strict=True):
        assert a.shape == b.shape == c.shape
        assert a.dtype == b.dtype == c.dtype
        assert a.stride() == b.stride() == c.stride()
    graph = make_fx(lambda a, b: function(a, b))(first, second)
    assert "torch.ops.fastmem." in graph.code
    assert_same(graph(first, second), real[0] if function is not logit_stats else real)


def test_export_keeps_the_operator() -> None:
    class Divergence(torch.nn.Module):
        def forward(self, p: Tensor, q: Tensor) -> Tensor:
            return kl_div(p, q)

    p, q = arguments(kl_div)
    program = torch.export.export(Divergence(), (p, q))
    assert "fastmem.kl_div_forward" in str(program.graph)
    assert_same(program.module()(p, q), textbook_kl(p, q))


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 0)], ids=str)
def test_vmap(
    operator: tuple[Callable[..., Tensor], Callable[..., Tensor]], backend: str, in_dims: tuple[int | None, ...]
) -> None:
    function, textbook = operator
    first, second = arguments(function)
    if in_dims == (1, None):
        second = second[:, 0]
    if in_dims == (None, 0):
        first = first[:, 0] if function is not kl_div else first[0]
        second = second.mT if function is not kl_div else second
    with use_backend(backend):
        assert_same(torch.vmap(function, in_dims)(first, second), torch.vmap(textbook, in_dims)(first, second))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_by_transform(operator: tuple[Callable[..., Tensor], Callable[..., Tensor]], backend: str) -> None:
    function, textbook = operator
    first, second = arguments(function)
    wanted = (0, 1) if function is kl_div else (0,)
    with use_backend(backend):
        for transform in (
            lambda f: torch.func.grad(lambda a, b: weighted_sum(f(a, b)), wanted)(first, second),
            lambda f: torch.func.vmap(torch.func.grad(lambda a, b: weighted_sum(f(a, b)), wanted))(first, second),
            lambda f: torch.func.jacrev(lambda a: f(a, second))(first),
        ):
            assert_same(transform(function), transform(textbook))


def test_a_transform_is_traced_and_compiled() -> None:
    p, q = arguments(kl_div)
    per_row = torch.vmap(torch.func.grad(lambda p, q: kl_div(p, q).sum(), 1))
    expected = torch.vmap(torch.func.grad(lambda p, q: textbook_kl(p, q).sum(), 1))(p, q)
    graph = make_fx(per_row)(p, q)
    assert "torch.ops.fastmem.kl_div_backward" in graph.code
    assert_same(graph(p, q), expected)
    compiled = torch.compile(lambda p, q: torch.vmap(kl_div, (1, None))(p, q), fullgraph=True, backend="eager")
    assert_same(compiled(p, q[:, 0]), torch.vmap(textbook_kl, (1, None))(p, q[:, 0]))


def test_a_shared_side_gets_a_gradient_for_each_mapped_row() -> None:
    p, q = torch.randn(2, 5, 6, dtype=torch.float64).unbind(0)
    per_row = torch.vmap(torch.func.grad(lambda p, q: kl_div(p, q).sum(), 1), (0, None))
    expected = torch.vmap(torch.func.grad(lambda p, q: textbook_kl(p, q).sum(), 1), (0, None))
    assert_same(per_row(p, q), expected(p, q))


def test_the_reference_gives_higher_orders_and_forward_mode(
    operator: tuple[Callable[..., Tensor], Callable[..., Tensor]],
) -> None:
    function, textbook = operator
    first, second = arguments(function)
    tangent = torch.randn_like(first)
    with use_backend("reference"):
        assert_same(
            torch.func.hessian(lambda a: weighted_sum(function(a, second)))(first),
            torch.func.hessian(lambda a: weighted_sum(textbook(a, second)))(first),
        )
        _, forward = torch.func.jvp(lambda a: function(a, second), (first,), (tangent,))
        _, expected = torch.func.jvp(lambda a: textbook(a, second), (first,), (tangent,))
        assert_same(forward, expected)
        leaves = (first.requires_grad_(), *([second.requires_grad_()] if function is kl_div else []))
        assert torch.autograd.gradgradcheck(
            lambda *leaves: tuple(torch.atleast_1d(function(*leaves, *([] if function is kl_div else [second])))),
            leaves,
            fast_mode=True,
        )


def test_others_refuse_what_they_would_get_wrong(
    operator: tuple[Callable[..., Tensor], Callable[..., Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    function, _ = operator
    first, second = arguments(function)
    for op in ("kl_div", "logit_stats"):  # what holds for the stand-in holds for every native backend
        stand_in_for_native(monkeypatch, op)
    leaf = first.clone().requires_grad_()
    output = weighted_sum(function(leaf, second))
    (gradient,) = torch.autograd.grad(output, leaf, create_graph=True)  # harmless by itself
    with pytest.raises(RuntimeError, match=FORWARD_ONLY):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=FORWARD_ONLY):
        torch.func.hessian(lambda a: weighted_sum(function(a, second)))(first)
    with pytest.raises(RuntimeError, match=FORWARD_ONLY):
        torch.func.jvp(lambda a: function(a, second), (first,), (first,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=FORWARD_ONLY):
        function(forward_ad.make_dual(first, first), second)


def test_a_plain_call_is_neither_dispatched_nor_transformed() -> None:
    assert not _modes.dispatched()
    assert not _modes.transformed()
    with FakeTensorMode():
        assert _modes.dispatched()
    with forward_ad.dual_level():
        assert _modes.transformed()
    torch.vmap(lambda x: (x, pytest.fail("not seen") if not _modes.transformed() else None)[0])(torch.zeros(2))
