"""Several models as one: the mean of their probabilities (Lakshminarayanan et al. 2017, arXiv:1612.01474)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmem.errors import InputError

__all__ = ["ensemble_logits"]


def ensemble_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits of the mean probability of some models: ``log mean_m softmax(h_m)``, in float64 throughout.

    Args:
        logits: Of each model, floating [..., C], all of one shape.

    Returns:
        [..., C] in the dtype of the first; its softmax is the mean probability.

    Raises:
        InputError: If there is none, or shapes differ.
    """
    shapes = {tuple(part.shape) for part in logits}
    if len(shapes) != 1:
        raise InputError("logits", f"shapes {sorted(shapes)}", "give one or more tensors of one shape")
    log_p = torch.stack([part.double().log_softmax(dim=-1) for part in logits])
    return (log_p.logsumexp(dim=0) - math.log(len(logits))).to(logits[0].dtype)
