"""KL divergence by the CUDA kernels: allocation, strides and launches; csrc/cuda/kl_div_*.cu has the arithmetic.

Roof: memory traffic, for B rows of C classes of e bytes. Forward reads each logit once at every size, ``2 B C e`` bytes,
and writes 16 B. Backward reads ``2 B C e`` and writes ``B C e`` for each side; against a shared operand of R rows it
reads ``(1 + R) B C e`` and writes the shared gradient once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._gpu_choice import priority
from fastmem.ops._leading import broadcasts, leading, summed_over
from fastmem.ops._native import cuda_module
from fastmem.ops._registry import Backend, register
from fastmem.ops.cuda import address, logits_argument, target, why_unavailable, why_unsupported

#: A temperature whose reciprocal float32 holds with room for logits.
_TEMPERATURES = (1e-30, 1e30)


def forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``kl``, ``lse_p``, ``centre`` and ``shift``, each of the broadcast leading shape."""
    module = cuda_module()
    shape, sizes, (p_strides, q_strides) = leading(p, q)
    dtype = accumulation_dtype(p.dtype)
    kl, lse_p, centre, shift = (p.new_empty(shape, dtype=dtype) for _ in range(4))
    where = target(p)
    segments = module.row_segments(where[0], kl.numel(), p.shape[-1])
    workspace = p.new_empty(kl.numel() * segments * module.KL_SUMS, dtype=dtype) if segments > 1 else None
    module.kl_div_forward(
        where,
        sizes,
        p.shape[-1],
        logits_argument(p, p_strides),
        logits_argument(q, q_strides),
        temperature,
        [address(result) for result in (kl, lse_p, centre, shift)],
        address(workspace),
        segments,
    )
    return kl, lse_p, centre, shift


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
    """Gradients of the two operands in their own shapes and dtype; where one broadcasts, its rows are summed on chip."""
    shape, sizes, (p_strides, q_strides) = leading(p, q)
    dtype = accumulation_dtype(p.dtype)
    rows = [row.to(dtype).contiguous() for row in (grad, kl, lse_p, centre, shift)]
    dp = torch.empty_like(p, memory_format=torch.contiguous_format) if need_p else None
    dq = torch.empty_like(q, memory_format=torch.contiguous_format) if need_q else None
    sum_p, sum_q = broadcasts(p, shape), broadcasts(q, shape)
    # A summed gradient brings that of the other operand along if that one has a row for every row.
    if dp is not None and sum_p:
        _backward_summed(rows, p, q, temperature, True, dp, None if sum_q else dq)
    if dq is not None and sum_q:
        _backward_summed(rows, p, q, temperature, False, dq, None if sum_p else dp)
    alone_p = dp if not sum_p and not (need_q and sum_q) else None
    alone_q = dq if not sum_q and not (need_p and sum_p) else None
    if alone_p is not None or alone_q is not None:
        cuda_module().kl_div_backward(
            target(p),
            sizes,
            p.shape[-1],
            logits_argument(p, p_strides),
            logits_argument(q, q_strides),
            temperature,
            [address(row) for row in rows],
            address(alone_p),
            address(alone_q),
        )
    return dp, dq


def _backward_summed(
    rows: list[Tensor],
    p: Tensor,
    q: Tensor,
    temperature: float,
    sum_p: bool,
    gradient: Tensor,
    other_gradient: Tensor | None,
) -> None:
    module = cuda_module()
    operand, other = (p, q) if sum_p else (q, p)
    kept, summed, strides, row_strides = summed_over(operand, other)
    p_strides, q_strides = strides if sum_p else reversed(strides)
    where = target(p)
    num_summed = rows[0].numel() // max(gradient.numel() // p.shape[-1], 1)
    segments = module.sum_segments(where[0], gradient.numel() // p.shape[-1], num_summed, p.shape[-1])
    workspace = rows[0].new_empty(segments * gradient.numel()) if segments > 1 else None
    module.kl_div_backward_summed(
        where,
        kept,
        summed,
        p.shape[-1],
        logits_argument(p, p_strides),
        logits_argument(q, q_strides),
        row_strides,
        temperature,
        [address(row) for row in rows],
        sum_p,
        address(gradient),
        address(other_gradient),
        address(workspace),
        segments,
    )


def _supports(p: Tensor, q: Tensor, temperature: float) -> str | None:
    if not _TEMPERATURES[0] <= temperature <= _TEMPERATURES[1]:
        return f"the temperature {temperature:g} is beyond what float32 scales by"
    return why_unsupported(p, q)


register(
    Backend(
        op="kl_div",
        name="cuda",
        priority=lambda p, q, temperature: priority("cuda", p),
        available=why_unavailable,
        supports=_supports,
        forward=forward,
        backward=backward,
    )
)
