"""Statistics of a model's answers, from its logits: in float64, by forms that keep their digits in both tails.

:mod:`fastmem.signals.names` says what each statistic is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastmem.ops import logit_margin, logit_stats
from fastmem.signals.names import OF_MARGIN, parse_name, trailing_shape

__all__ = ["from_logits", "statistics"]

_BLOCK_ELEMENTS = 1 << 20  # 8 MB of float64: the largest piece of logits held in double precision


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
    parsed = {name: parse_name(name) for name in names}

    out: dict[str, Tensor] = {}
    if {base for base, _ in parsed.values()} & {"hinge", "max_prob", "entropy"}:
        fused = logit_stats(logits, queries)
        margins = {1.0: fused.margin}
        out = {"hinge": fused.hinge, "max_prob": fused.max_prob, "entropy": fused.entropy}
    else:
        margins = {}
    for base, temperature in parsed.values():
        if base in (*OF_MARGIN, "modified_entropy") and temperature not in margins:
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
