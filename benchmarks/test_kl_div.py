"""kl_div: forward and backward towards both sides, and one row against many."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import fastmem
from benchmarks.cases import Case, Contestant, backward_of, compiled, ours, peer
from benchmarks.timing import measure

_CPU_SHAPES = [(65536, 10), (8192, 1000), (512, 50257)]
_GPU_SHAPES = [(1 << 23, 10), (1 << 20, 100), (1 << 17, 1000), (1 << 12, 32000), (1 << 10, 152000)]
_ONE_TO_MANY = [(4096, 64, 10), (64, 128, 1000)]


def eager(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The usual way: two log-softmaxes and ``F.kl_div``."""
    log_p, log_q = F.log_softmax(p, -1), F.log_softmax(q, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def by_torchmetrics(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Its divergence of each row wants normalised log-probabilities."""
    from torchmetrics.functional.regression import kl_divergence  # type: ignore[import-not-found]

    return kl_divergence(F.log_softmax(p, -1), F.log_softmax(q, -1), log_prob=True, reduction="none")


def cases(device: str) -> list[Case]:
    """Every case of this file on ``device``."""
    shapes = _CPU_SHAPES if device == "cpu" else _GPU_SHAPES
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    found = []
    for dtype in dtypes:
        for shape in shapes:
            found.append(_case("kl_div forward", shape, shape, dtype, device, gradient=False))
            found.append(_case("kl_div backward", shape, shape, dtype, device, gradient=True))
        for batch, many, classes in _ONE_TO_MANY:
            found.append(
                _case("kl_div one-to-many", (batch, 1, classes), (batch, many, classes), dtype, device, gradient=False)
            )
    return found


def _case(
    operator: str,
    p_shape: tuple[int, ...],
    q_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    *,
    gradient: bool,
) -> Case:
    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        p = 3 * torch.randn(p_shape, generator=generator, device=device)
        q = p + torch.randn(q_shape, generator=generator, device=device)
        return tuple(x.to(dtype).requires_grad_(gradient) for x in (p, q))  # type: ignore[return-value]

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        return backward_of(forward) if gradient else forward

    sample = tuple(torch.empty((2, 1, p_shape[-1]), dtype=dtype, device=device) for _ in range(2))
    peers = (peer("torchmetrics", timed(by_torchmetrics)),) if p_shape == q_shape else ()  # it does not broadcast
    shape = str(q_shape) if p_shape == q_shape else f"{p_shape} x {q_shape}"
    dtype_name = str(dtype).removeprefix("torch.")
    values = math.prod(p_shape) + math.prod(q_shape)
    return Case(
        name=f"{operator} {shape} {dtype_name}".replace(" ", "_"),
        operator=operator,
        shape=shape,
        dtype=dtype_name,
        bytes=values * dtype.itemsize * (2 if gradient else 1),
        inputs=inputs,
        contestants=(
            Contestant("eager", timed(eager)),
            Contestant("compile", timed(compiled(eager))),
            *peers,
            *ours("kl_div", timed(fastmem.kl_div), sample),
        ),
    )


def test_kl_div(benchmark: Any, case: Case, contestant: Contestant, describe: None, request: Any) -> None:
    """Time one contestant."""
    measure(benchmark, contestant.run, case.inputs(), request.config.getoption("--bench-seconds"))
