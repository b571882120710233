"""How the operators behave under PyTorch's own machinery: compiling, tracing, transforms, higher derivatives.

In plain eager mode an operator calls its implementation directly, which costs microseconds less than the dispatcher.
That is right only while nobody else must see the call; :func:`dispatched` and :func:`transformed` tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["FIRST_ORDER_ONLY", "dispatched", "to_front", "transformed", "watched"]

FIRST_ORDER_ONLY = (
    "this backend gives first derivatives in reverse mode only; compute the forward pass within "
    'fastmem.use_backend("reference") for higher orders and forward mode'
)


def dispatched() -> bool:
    """Whether the call must go through PyTorch's dispatcher, because someone there records or replaces it.

    So it is under ``torch.compile`` and export, and within a dispatch mode (fake tensors, proxies, operator counters).
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def transformed() -> bool:
    """Whether the call happens within a ``torch.func`` transform or at a level of forward-mode differentiation.

    The compiler takes care of transforms in what it compiles, so there the answer is no.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched() -> bool:
    """Whether a mode sees every call of a PyTorch function, as :mod:`fastmem.ops._layers` does to take gradients."""
    return torch._C._len_torch_function_stack() > 0


def to_front(batch_size: int, in_dims: Sequence[int | None], args: Sequence[Any]) -> list[Any]:
    """The arguments of a call under vmap with the mapped dimension first in every tensor.

    A tensor that is not mapped repeats by a zero stride, so that its own gradient too has a row for each copy.
    """
    return [
        arg
        if not isinstance(arg, Tensor)
        else arg.expand(batch_size, *arg.shape)
        if dim is None
        else arg.movedim(dim, 0)
        for dim, arg in zip(in_dims, args, strict=True)
    ]
