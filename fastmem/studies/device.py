"""Where a study trains."""

from __future__ import annotations

import torch

from fastmem.errors import InputError

__all__ = ["choose_device"]


def choose_device(asked: str) -> str:
    """``"cuda"`` or ``"cpu"`` for what was asked: auto, cpu or cuda.

    Raises:
        InputError: If CUDA is asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "cuda, but torch finds no CUDA device here", "give --device cpu or auto")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
