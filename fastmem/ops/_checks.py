"""What operators ask of their arguments at the door.

Every refusal is an :class:`~fastmem.errors.InputError` that names the argument, what was given and what is accepted.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fastmem.errors import InputError

__all__ = [
    "FLOATING_DTYPES",
    "accumulation_dtype",
    "positive_number",
    "require_dtype",
    "require_same_device",
    "require_tensor",
]

#: The dtypes of logits that every operator takes.
FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A Parameter is a tensor by another name; the last two stand for plain tensors while torch.compile or export traces.
_PLAIN_TYPES = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)


def require_tensor(argument: str, value: Any) -> None:
    """Refuse all but a plain dense tensor: the kernels read memory through its pointer, sizes and strides."""
    if not isinstance(value, Tensor):
        raise InputError(argument, f"got {type(value).__name__}", "give a torch.Tensor")
    if type(value) not in _PLAIN_TYPES:
        raise InputError(
            argument, f"got the tensor subclass {type(value).__name__}", "give a plain torch.Tensor of its values"
        )
    if value.layout is not torch.strided:
        raise InputError(argument, f"got a tensor of layout {value.layout}", "give a dense one (.to_dense())")
    if value.is_quantized:
        raise InputError(argument, f"got a quantised tensor ({value.dtype})", "give .dequantize() of it")
    # (A compiled graph materialises these two bits by itself, and its tracer cannot ask for them.)
    if not torch.compiler.is_compiling() and (value.is_conj() or value.is_neg()):
        bit, remedy = ("conjugate", "resolve_conj") if value.is_conj() else ("negative", "resolve_neg")
        raise InputError(argument, f"got a tensor whose {bit} bit is set", f"give .{remedy}() of it")


def require_dtype(argument: str, tensor: Tensor, accepted: Collection[torch.dtype] = FLOATING_DTYPES) -> None:
    """Refuse a dtype that is not among the accepted ones."""
    if tensor.dtype not in accepted:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        raise InputError(argument, f"got dtype {str(tensor.dtype).removeprefix('torch.')}", f"accepted: {names}")


def require_same_device(argument: str, tensor: Tensor, other_argument: str, other: Tensor) -> None:
    """Refuse two tensors on different devices."""
    if tensor.device != other.device:
        raise InputError(
            argument,
            f"is on {tensor.device} but {other_argument} is on {other.device}",
            f"move one of them (.to({str(other.device)!r}))",
        )


def positive_number(argument: str, value: Any) -> float:
    """The value as a float; refuse what is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(argument, f"got {type(value).__name__}", "give a number above 0")
    number = float(value)
    if not 0.0 < number < math.inf:
        raise InputError(argument, f"got {value!r}", "give a finite number above 0")
    return number


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and results: float64 for float64 operands, float32 for narrower ones."""
    return torch.float64 if dtype is torch.float64 else torch.float32
