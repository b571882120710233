"""KL divergence of two sets of logits in plain PyTorch: the definition, the oracle and the fallback.

With ``P = softmax(p/T)``, ``Q = softmax(q/T)`` and ``u = log P - log Q`` it evaluates the non-negative form

    KL = sum_c P_c phi(u_c),     phi(u) = u + exp(-u) - 1 >= 0,

which adds ``sum Q - sum P = 0`` to ``sum P u`` and so has no cancellation between terms. All of it is float64, whatever
the operands: a relative error of 1e-9 remains at KL = 1e-7, and the result is rounded once, at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._registry import Backend, register

#: Beyond this |u| the term is taken as P u - P + Q: there P phi(u) could be 0 * inf.
_SMALL_RATIO = 0.3


class _Rows(NamedTuple):
    """What both passes need of every row, in float64; ``*`` are the broadcast leading dimensions."""

    kl: Tensor  # [*]
    lse_p: Tensor  # [*]
    lse_difference: Tensor  # [*]: logsumexp(p/T) - logsumexp(q/T), so that u = (p - q)/T - lse_difference
    prob_p: Tensor  # [*, C]
    prob_q: Tensor  # [*, C]
    log_ratio: Tensor  # [*, C]: u, and 0 where either logit is -inf


def forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """KL of every row, and what a backward pass rebuilds ``u = ((p - q)/T - centre) + shift`` from.

    Returns:
        ``kl``, ``lse_p`` (logsumexp of p/T), ``centre`` and ``shift``, each of the broadcast leading shape. The centre
        is the rounded difference of the two logsumexps and the shift what rounding took from it.
    """
    rows = _rows(p, q, temperature)
    dtype = accumulation_dtype(p.dtype)
    centre = rows.lse_difference.to(dtype)
    shift = (centre.double() - rows.lse_difference).to(dtype)
    results = rows.kl.to(dtype), rows.lse_p.to(dtype).expand_as(centre), centre, shift
    return tuple(result.contiguous() for result in results)


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
    """Gradients ``dKL/dp = P (u - KL) / T`` and ``dKL/dq = (Q - P) / T``, times ``grad``, summed over broadcast rows.

    The saved row values are not used: in float64 they are better computed again than read back rounded. A row whose KL
    is not finite has NaN as its gradient on both sides.
    """
    rows = _rows(p, q, temperature)
    scale = (grad.double() / temperature).where(rows.kl.isfinite(), math.nan).unsqueeze(-1)
    dp = dq = None
    if need_p:
        dp = scale * rows.prob_p * (rows.log_ratio - rows.kl.unsqueeze(-1))
        dp = dp.sum_to_size(p.shape).to(p.dtype).contiguous()
    if need_q:
        dq = scale * (rows.prob_q - rows.prob_p)
        dq = dq.sum_to_size(q.shape).to(q.dtype).contiguous()
    return dp, dq


def differentiable(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """The same KL, left to PyTorch's own differentiation: any order, forward mode, ``torch.func`` transforms."""
    kl = _rows(p, q, temperature).kl
    if kl.requires_grad:
        finite = kl.detach().isfinite()
        kl.register_hook(lambda grad: None if grad is None else grad.where(finite, math.nan))  # as in backward()
    return kl.to(accumulation_dtype(p.dtype))


def _rows(p: Tensor, q: Tensor, temperature: float) -> _Rows:
    p, q = p.double() / temperature, q.double() / temperature
    lse_p, lse_q = p.logsumexp(-1), q.logsumexp(-1)
    prob_p, prob_q = (p - lse_p.unsqueeze(-1)).exp(), (q - lse_q.unsqueeze(-1)).exp()
    lse_difference = lse_p - lse_q

    p_absent, q_absent = p == -math.inf, q == -math.inf
    # Masked by where before and after, so that no infinity enters a product, nor its derivative.
    log_ratio = (p - q - lse_difference.unsqueeze(-1)).masked_fill(p_absent | q_absent, 0.0)
    small = log_ratio.abs() <= _SMALL_RATIO
    u = log_ratio.where(small, 0.0)
    terms = torch.where(small, prob_p * (u + torch.expm1(-u)), prob_p * log_ratio - prob_p + prob_q)
    terms = torch.where(p_absent, prob_q, terms)
    terms = terms.masked_fill(q_absent & ~p_absent, math.inf)
    # Adds 0, or NaN where a softmax does not exist: a NaN, a +inf or nothing but -inf in the row.
    kl = terms.sum(-1) + 0.0 * (lse_p + lse_q)
    return _Rows(kl, lse_p, lse_difference, prob_p, prob_q, log_ratio)


register(
    Backend(
        op="kl_div",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda p, q, temperature: None,
        forward=forward,
        backward=backward,
    )
)
