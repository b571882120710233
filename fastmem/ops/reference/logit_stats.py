"""What a classifier's logits say about the label, in plain PyTorch: the definition, the oracle and the fallback.

The log-odds of the label are taken as ``z_y - logsumexp of the others``, with the label masked out, and everything else
from there; never as ``log p - log(1 - p)``, which in float32 is infinite from a margin of about 17 on. All of it is
float64, whatever the logits, and is rounded once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._registry import Backend, register


class _Rows(NamedTuple):
    """What both passes need of every row, in float64; ``*`` are the leading dimensions of the logits."""

    logits: Tensor  # [*, C]
    label: Tensor  # [*, 1]: the label, forced into range
    outside: Tensor  # [*]: whether it was out of range
    others: Tensor  # [*, C]: the logits with -inf at the label
    rival: Tensor  # [*, 1]: the first of the largest logits among the others
    margin: Tensor  # [*]; NaN if the label is out of range


def forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor | None, ...]:
    """Margin, loss, hinge, max_prob and entropy, each of the leading shape; the last four ``None`` if not wanted."""
    statistics = _statistics(_rows(logits, labels), margin_only, accumulation_dtype(logits.dtype))
    return tuple(None if statistic is None else statistic.contiguous() for statistic in statistics)


def backward(grads: Sequence[Tensor | None], logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient with respect to the logits, from those with respect to the five statistics (``None``: not used).

    A row whose margin is not finite has NaN as its gradient. Of several largest logits the first one gets it.
    """
    rows = _rows(logits, labels)
    margin, loss, hinge, max_prob, entropy = (None if g is None else g.double().unsqueeze(-1) for g in grads)
    at_label = _one_hot(rows.label, rows.logits).double()
    total = torch.zeros_like(rows.logits)
    if margin is not None:
        total += margin * (at_label - rows.others.softmax(-1))
    if loss is not None:  # d softplus(-m)/dm = -sigmoid(-m), which stays exact where 1 - p_y would cancel
        total -= loss * (-rows.margin).sigmoid().unsqueeze(-1) * (at_label - rows.others.softmax(-1))
    if hinge is not None:
        total += hinge * (at_label - _one_hot(rows.rival, rows.logits).double())
    if max_prob is not None:
        prob, top = rows.logits.softmax(-1), _first_largest(rows.logits)
        total += max_prob * prob.gather(-1, top) * (_one_hot(top, rows.logits).double() - prob)
    if entropy is not None:
        log_prob = rows.logits.log_softmax(-1)
        surprise = log_prob.masked_fill(rows.logits == -math.inf, 0.0)
        prob = log_prob.exp()
        total -= entropy * prob * (surprise - (prob * surprise).sum(-1, keepdim=True))
    return total.where(rows.margin.isfinite().unsqueeze(-1), math.nan).to(logits.dtype).contiguous()


def differentiable(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor | None, ...]:
    """The same statistics, left to PyTorch's own differentiation: any order, forward mode, ``torch.func`` transforms."""
    rows = _rows(logits, labels)
    if rows.logits.requires_grad:
        finite = rows.margin.detach().isfinite().unsqueeze(-1)
        rows.logits.register_hook(lambda grad: None if grad is None else grad.where(finite, math.nan))  # as backward()
    return _statistics(rows, margin_only, accumulation_dtype(logits.dtype))


def _rows(logits: Tensor, labels: Tensor) -> _Rows:
    num_classes = logits.shape[-1]
    z = logits.view_as(logits).double()  # never the caller's own tensor: it may get a hook
    labels = labels.expand(logits.shape[:-1])
    outside = (labels < 0) | (labels >= num_classes)
    label = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    others = z.masked_fill(_one_hot(label, z), -math.inf)
    margin = (z.gather(-1, label).squeeze(-1) - others.logsumexp(-1)).masked_fill(outside, math.nan)
    return _Rows(z, label, outside, others, _first_largest(others), margin)


def _statistics(rows: _Rows, margin_only: bool, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    if margin_only:
        return rows.margin.to(dtype), None, None, None, None
    z, top = rows.logits, _first_largest(rows.logits)
    hinge = z.gather(-1, rows.label) - rows.others.gather(-1, rows.rival)

    largest = z.gather(-1, top)
    below = (z - largest).masked_fill(_one_hot(top, z), -math.inf)
    weights = below.exp()
    rest = weights.sum(-1)  # the partition sum over exp(largest), less the 1 of the largest itself
    surprise = -(weights * below.masked_fill(below == -math.inf, 0.0)).sum(-1)
    entropy = rest.log1p() + surprise / (1.0 + rest)
    undefined = rows.outside | ~largest.squeeze(-1).isfinite()
    return (
        rows.margin.to(dtype),
        (0.0 - logsigmoid(rows.margin)).to(dtype),  # not -0 for a loss of 0
        hinge.squeeze(-1).masked_fill(rows.outside, math.nan).to(dtype),
        (1.0 / (1.0 + rest)).masked_fill(undefined, math.nan).to(dtype),
        entropy.masked_fill(undefined, math.nan).to(dtype),
    )


def _first_largest(z: Tensor) -> Tensor:
    """The lowest index of the largest entry (or of a NaN), ``[*, 1]``; PyTorch promises no order among equals."""
    index = torch.arange(z.shape[-1], device=z.device)
    is_largest = (z == z.amax(-1, keepdim=True)) | z.isnan()
    return torch.where(is_largest, index, z.shape[-1]).amin(-1, keepdim=True)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device) == index


register(
    Backend(
        op="logit_stats",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda logits, labels, margin_only: None,
        forward=forward,
        backward=backward,
    )
)
