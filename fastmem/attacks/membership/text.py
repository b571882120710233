"""Membership attacks on a language model that need nothing but its answers: loss, Min-k%, and the loss against zlib.

Higher score = more likely a member. Loss (Yeom et al. 2018), Min-k% (Shi et al. 2024, arXiv:2310.16789), zlib ratio (Carlini
et al. 2021, arXiv:2012.07805).
"""

from __future__ import annotations

import numpy as np

from fastmem.errors import InputError

__all__ = ["min_k", "negative_loss", "zlib_ratio"]


def negative_loss(log_p: np.ndarray) -> np.ndarray:
    """Mean log probability of a block's tokens, float64 [N] of [N, L]."""
    return log_p.astype(np.float64).mean(axis=1)


def min_k(log_p: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Mean log probability of the least likely tokens of a block: a member has no token that surprises the model.

    Args:
        log_p: [N, L].
        share: Of the tokens, at least one is taken.

    Raises:
        InputError: If the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError("share", f"{share}", "give a share of the tokens, above 0 to 1")
    count = max(1, int(share * log_p.shape[1]))
    return np.sort(log_p.astype(np.float64), axis=1)[:, :count].mean(axis=1)


def zlib_ratio(log_p: np.ndarray, compressed: np.ndarray) -> np.ndarray:
    """Log probability of a block for each byte that zlib needs for its text: plain text is likely for any model.

    Args:
        log_p: [N, L].
        compressed: Bytes [N].
    """
    return log_p.astype(np.float64).sum(axis=1) / compressed
