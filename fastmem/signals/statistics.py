"""Statistics of a model's answer about one record: what membership attacks read instead of logits.

With logits h, probabilities p = softmax(h), true class y, natural logarithms and everything in float64:

| name | value | end that points at a member |
|---|---|---|
| ``margin`` | s = h_y - logsumexp(h_c, c != y) = log p_y - log(1 - p_y) | high |
| ``loss`` | softplus(-s) = -log p_y | low |
| ``true_log_prob`` | -softplus(-s) = log p_y | high |
| ``hinge`` | h_y - max of the other logits | high |
| ``max_prob`` | max_c p_c | high |
| ``entropy`` | -sum_c p_c log p_c | low |
| ``modified_entropy`` | -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)  (Song and Mittal 2021) | low |
| ``top3`` | the three largest probabilities, descending; 0 where there are fewer classes | - |

``margin``, ``loss`` and ``true_log_prob`` exist at other temperatures too: ``margin@2`` is the margin of h/2. The loss
and the true-class log probability follow from the margin, so the margin is what gets stored (:func:`stored_names`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops import logit_margin, logit_stats

__all__ = [
    "STAT_NAMES",
    "canonical_name",
    "from_logits",
    "from_margin",
    "margin_source",
    "statistics",
    "stored_names",
    "trailing_shape",
]

STAT_NAMES = ("margin", "loss", "true_log_prob", "hinge", "max_prob", "entropy", "modified_entropy", "top3")
_OF_MARGIN = ("margin", "loss", "true_log_prob")
_BLOCK_ELEMENTS = 1 << 20  # 8 MB of float64: the largest piece of logits held in double precision


def canonical_name(name: str) -> str:
    """The one spelling of a statistic's name: ``margin@2.0`` is ``margin@2``, ``margin@1`` is ``margin``.

    Args:
        name: A name of :data:`STAT_NAMES`, with ``@T`` for a temperature T where the table allows one.

    Returns:
        The canonical name.

    Raises:
        UnknownNameError: if there is no such statistic (the nearest names are given).
        InputError: if the temperature is not a positive number, or the statistic exists at temperature 1 only.
    """
    base, temperature = _parse(name)
    return base if temperature == 1.0 else f"{base}@{temperature:.12g}"


def margin_source(name: str) -> str | None:
    """The margin that ``name`` follows from without logits (``loss@2`` from ``margin@2``), or None."""
    base, temperature = _parse(name)
    if base not in _OF_MARGIN:
        return None
    return canonical_name(f"margin@{temperature!r}")


def stored_names(names: Iterable[str]) -> tuple[str, ...]:
    """The fewest statistics to store so that all of ``names`` can be had again, in order of first need."""
    return tuple(dict.fromkeys(margin_source(name) or canonical_name(name) for name in names))


def trailing_shape(name: str) -> tuple[int, ...]:
    """What follows [M, N, A] in the shape of a statistic: ``(3,)`` for ``top3``, else ``()``."""
    return (3,) if name == "top3" else ()


def from_margin(name: str, margin: np.ndarray) -> np.ndarray:
    """``loss``, ``true_log_prob`` or ``margin`` itself from the margin at the same temperature."""
    base, _ = _parse(name)
    if base == "margin":
        return margin
    loss = np.logaddexp(0.0, -margin)  # softplus(-s), exact in both tails
    return loss if base == "loss" else -loss


def from_logits(name: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One statistic of one model, in pieces, so that only a small part of the logits is ever in float64.

    Args:
        name: A statistic.
        logits: Logits of one model [N, A, C], any floating dtype.
        labels: Labels [N], int64.

    Returns:
        float64 [N, A], or [N, A, 3] for ``top3``.
    """
    num_samples, num_queries, num_classes = logits.shape
    out = np.empty((num_samples, num_queries, *trailing_shape(name)))
    step = max(1, _BLOCK_ELEMENTS // (num_queries * num_classes))
    for start in range(0, num_samples, step):
        rows = slice(start, start + step)
        block = torch.from_numpy(np.array(logits[rows], dtype=np.float64))
        target = torch.from_numpy(np.array(labels[rows]))
        out[rows] = statistics(block, target, (name,))[name].numpy()
    return out


def statistics(logits: Tensor, labels: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Statistics of a batch of answers, on the device of the logits.

    Args:
        logits: [B, A, C], any floating dtype; reduced in float64.
        labels: [B], int64, on the same device.
        names: The statistics to compute; nothing else is.

    Returns:
        For each name a float64 tensor [B, A], or [B, A, 3] for ``top3``.
    """
    names = tuple(dict.fromkeys(names))
    logits = logits.double()
    queries = labels[:, None]
    parsed = {name: _parse(name) for name in names}

    out: dict[str, Tensor] = {}
    if {base for base, _ in parsed.values()} & {"hinge", "max_prob", "entropy"}:
        fused = logit_stats(logits, queries)
        margins = {1.0: fused.margin}
        out = {"hinge": fused.hinge, "max_prob": fused.max_prob, "entropy": fused.entropy}
    else:
        margins = {}
    for base, temperature in parsed.values():
        if base in (*_OF_MARGIN, "modified_entropy") and temperature not in margins:
            margins[temperature] = logit_margin(logits if temperature == 1.0 else logits / temperature, queries)

    for name, (base, temperature) in parsed.items():
        if base == "margin":
            out[name] = margins[temperature]
        elif base == "loss":
            out[name] = -logsigmoid(margins[temperature])
        elif base == "true_log_prob":
            out[name] = logsigmoid(margins[temperature])
        elif base == "modified_entropy":
            out[name] = _modified_entropy(logits, queries, margins[1.0])
        elif base == "top3":
            out[name] = _top3(logits)
    return {name: out[name] for name in names}


def _modified_entropy(logits: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    # log(1 - p_c): log1p(-p_c) is exact to rounding while p_c <= 1/2. Only the largest probability can exceed that,
    # and for it 1 - p_c is what the other classes sum to: the margin of that class, never a difference from 1.
    log_rest = torch.log1p(-p)
    largest = logits.argmax(dim=-1)
    log_rest.scatter_(-1, largest.unsqueeze(-1), logsigmoid(-logit_margin(logits, largest)).unsqueeze(-1))
    wrong = p * log_rest
    wrong.scatter_(-1, labels.expand(largest.shape).unsqueeze(-1), 0.0)
    return -(torch.sigmoid(-margin) * logsigmoid(margin) + wrong.sum(dim=-1))


def _top3(logits: Tensor) -> Tensor:
    count = min(3, logits.shape[-1])
    largest = logits.topk(count, dim=-1).values
    p = (largest - logits.logsumexp(dim=-1, keepdim=True)).exp()
    return torch.nn.functional.pad(p, (0, 3 - count))


def _parse(name: str) -> tuple[str, float]:
    base, at, suffix = name.partition("@")
    if base not in STAT_NAMES:
        raise UnknownNameError("statistic", name, STAT_NAMES)
    if not at:
        return base, 1.0
    if base not in _OF_MARGIN:
        raise InputError("statistic", f"{name!r} asks for a temperature", f"only {', '.join(_OF_MARGIN)} take one")
    try:
        temperature = float(suffix)
    except ValueError:
        temperature = float("nan")
    if not 0.0 < temperature < float("inf"):
        raise InputError("statistic", f"temperature {suffix!r} in {name!r}", "give a positive number, as in 'margin@2'")
    return base, temperature
