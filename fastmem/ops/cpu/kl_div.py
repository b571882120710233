"""KL divergence by the C++ kernels.

Forward: rows of up to 64 classes lie side by side, one in each lane of a register; longer ones take a single sweep
centred on a guess, ``KL = E[v] + log1p(E[phi(v)] - E[v])`` with ``v = (p - q)/T - c``, whose sums tell whether the guess
``c`` was good enough. Rows with special or extreme values, and float64, are done in double by the definition.

Roof: reading both operands once. Short rows are bound by arithmetic, from a few thousand classes on memory binds; the
backward pass of large operands is bound by the system handing out pages for the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register


def forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, logsumexp of p/T, centre and shift of every row, each of the broadcast leading shape."""
    kl, lse_p, centre, shift = (_row_results(p, q) for _ in range(4))
    results = (result.data_ptr() for result in (kl, lse_p, centre, shift))
    cpu_module().kl_div_forward(*_operands(p, q), temperature, *results, torch.get_num_threads())
    return kl, lse_p, centre, shift


def value(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """KL alone: where rows are short, finding memory for the rest takes as long as computing."""
    kl = _row_results(p, q)
    cpu_module().kl_div_value(*_operands(p, q), temperature, kl.data_ptr(), torch.get_num_threads())
    return kl


def _row_results(p: Tensor, q: Tensor) -> Tensor:
    shape = p.shape[:-1] if p.shape == q.shape else torch.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    return torch.empty(shape, dtype=accumulation_dtype(p.dtype))


def _operands(p: Tensor, q: Tensor) -> tuple[Any, ...]:
    return p.data_ptr(), p.shape, p.stride(), q.data_ptr(), q.shape, q.stride(), DTYPE_CODES[p.dtype]


def backward(
    grad: Tensor,
    p: Tensor,
    q: Tensor,
    kl: Tensor,
    lse_p: Tensor,
    centre: Tensor,
    shift: Tensor,
    temperature: float,
    need_p: bool,
    need_q: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of p and q, contiguous, summed over the rows for which an operand is shared."""
    dp = torch.empty(p.shape, dtype=p.dtype) if need_p else None
    dq = torch.empty(q.shape, dtype=q.dtype) if need_q else None
    saved = [value.contiguous() for value in (kl, lse_p, centre, shift)]
    grad = grad.to(kl.dtype)
    cpu_module().kl_div_backward(
        grad.data_ptr(),
        grad.stride(),
        p.data_ptr(),
        p.shape,
        p.stride(),
        q.data_ptr(),
        q.shape,
        q.stride(),
        DTYPE_CODES[p.dtype],
        *(value.data_ptr() for value in saved),
        temperature,
        0 if dp is None else dp.data_ptr(),
        0 if dq is None else dq.data_ptr(),
        torch.get_num_threads(),
    )
    return dp, dq


def _supports(p: Tensor, q: Tensor, temperature: float) -> str | None:
    device = p.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these logits are on {device}"


register(
    Backend(
        op="kl_div",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("kl_div_forward", "kl_div_value", "kl_div_backward"),
        supports=_supports,
        forward=forward,
        backward=backward,
        value=value,
    )
)
