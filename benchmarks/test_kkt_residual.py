"""The reconstruction objective and its gradients against a second backward pass, and a sweep against the loop of its runs.

The baseline is the published computation, as in the targets; its second row leaves out what it computes in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastmem
from benchmarks.cases import Case, Contestant
from benchmarks.timing import measure
from fastmem.ops.kkt_residual import KktNetwork, kkt_residual

_WIDTH = 1000
_SHAPES = ((20, 784), (100, 784), (500, 3072))
_SWEEP = 32
_ALPHA = 20.0


def cases(device: str) -> list[Case]:
    """Every case of this file."""
    return [*(_one(device, m, inputs) for m, inputs in _SHAPES), _sweep(device)]


def _network(device: str, inputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Linear(inputs, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH, bias=False),
        nn.ReLU(),
        nn.Linear(_WIDTH, 1, bias=False),
    ]
    return nn.Sequential(*layers).to(device).eval()


def _inputs(device: str, *lead: int, inputs: int) -> Callable[[], tuple[Tensor, ...]]:
    def make() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x, c = torch.randn(*lead, inputs, generator=generator), torch.rand(*lead, generator=generator) / lead[-1]
        return x.to(device), c.to(device)

    return make


class _ModifiedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(_ALPHA * z)


def _double_backward(network: nn.Sequential, fills: bool) -> Callable[..., Any]:
    """As the published code does it: it also fills gradients of the weights, which it never reads; or without those."""
    weights = list(network.parameters())
    first, bias, second, top = weights

    def run(x: Tensor, c: Tensor) -> Any:
        x, c = x.detach().requires_grad_(), c.detach().requires_grad_()
        a = _ModifiedReLU.apply(torch.nn.functional.linear(x, first, bias))
        a = _ModifiedReLU.apply(a @ second.T)
        outputs = (a @ top.T).squeeze(-1)
        sums = torch.autograd.grad((outputs * c).sum(), weights, create_graph=True)
        loss = sum((weight.detach() - each).square().sum() for weight, each in zip(weights, sums, strict=True))
        assert isinstance(loss, Tensor)
        if fills:
            loss.backward()
            return x.grad, c.grad
        return torch.autograd.grad(loss, [x, c])

    return run


def _one(device: str, m: int, inputs: int) -> Case:
    network = _network(device, inputs)
    prepared = KktNetwork.of(network)
    make = _inputs(device, m, inputs=inputs)
    return Case(
        name=f"kkt_residual_{m}",
        operator="kkt_residual, value and gradients",
        shape=f"m={m} d={inputs} width {_WIDTH}",
        dtype="float32",
        bytes=4 * (2 * m * inputs + _WIDTH * (2 * inputs + 4 * _WIDTH)),
        inputs=make,
        contestants=(
            Contestant("eager, as published", _double_backward(network, fills=True)),
            Contestant("eager, inputs only", _double_backward(network, fills=False)),
            *_ours(prepared, make()),
        ),
    )


def _ours(prepared: KktNetwork, sample: tuple[Tensor, ...]) -> list[Contestant]:
    """One contestant for each backend, the closed form in plain PyTorch among them."""

    def on(backend: str) -> Callable[..., Any]:
        def call(x: Tensor, c: Tensor) -> Any:
            with fastmem.use_backend(backend):
                return kkt_residual(prepared, x, c, alpha=_ALPHA)

        return call

    remarks = fastmem.explain("kkt_residual", prepared, *sample, alpha=_ALPHA).remarks
    absent = ("not available", "does not take")
    return [
        Contestant(f"fastmem {name}", on(name), ours=True, reason_absent=remark if remark.startswith(absent) else None)
        for name, remark in remarks.items()
    ]


def _sweep(device: str) -> Case:
    m, inputs = _SHAPES[0]
    prepared = KktNetwork.of(_network(device, inputs))

    def one_by_one(x: Tensor, c: Tensor) -> Any:
        return [kkt_residual(prepared, *each, alpha=_ALPHA) for each in zip(x, c, strict=True)]

    def together(x: Tensor, c: Tensor) -> Any:
        return kkt_residual(prepared, x, c, alpha=_ALPHA)

    return Case(
        name="kkt_residual_sweep",
        operator="kkt_residual, 32 settings at once",
        shape=f"S={_SWEEP} m={m} d={inputs} width {_WIDTH}",
        dtype="float32",
        bytes=4 * _SWEEP * 2 * m * inputs,
        inputs=_inputs(device, _SWEEP, m, inputs=inputs),
        contestants=(
            Contestant("fastmem, one by one", one_by_one),
            Contestant("fastmem, at once", together, ours=True),
        ),
    )


def test_kkt_residual(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
