"""The operators as CUDA C++ kernels (csrc/cuda), launched on PyTorch's current stream."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastmem.ops._leading import leading
from fastmem.ops._native import NativeUnavailable, cuda_module, why_no_cuda

__all__ = ["address", "logits_argument", "target", "why_unavailable", "why_unsupported"]

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
#: The oldest device that the module holds machine code for.
_OLDEST_CAPABILITY = (8, 0)


def why_unavailable() -> str | None:
    """``None`` if the kernels can run on this machine, else the reason why not."""
    if _emulated():
        return None
    reason = why_no_cuda()
    if reason is None and cuda_module().device_count() == 0:
        reason = "the CUDA runtime of this build finds no device it can use (an older driver?)"
    return reason


def why_unsupported(*operands: Tensor) -> str | None:
    """``None`` if the kernels take ``[*, C]`` operands of these devices and sizes, else the reason why not."""
    first = operands[0]
    module = cuda_module()
    if not module.EMULATED:
        if first.device.type != "cuda":
            return f"it computes on CUDA devices, and these tensors are on {first.device}"
        capability = torch.cuda.get_device_capability(first.device)
        if capability < _OLDEST_CAPABILITY:
            return f"the device has compute capability {capability[0]}.{capability[1]}, below 8.0"
    elif first.device.type != "cpu":
        return "this build runs on the CPU, for tests"
    if first.shape[-1] > module.MAX_CLASSES:
        return f"more than {module.MAX_CLASSES} classes"
    if first.ndim > module.MAX_LEADING_DIMS + 1 and len(leading(*operands).sizes) > module.MAX_LEADING_DIMS:
        return f"more than {module.MAX_LEADING_DIMS} leading dimensions of unrelated strides"
    return None


def target(tensor: Tensor) -> tuple[int, int, int]:
    """Device, stream and dtype code, as every kernel takes them."""
    code = _DTYPE_CODES[tensor.dtype]
    if tensor.device.type == "cpu":
        return 0, 0, code
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream, code


def logits_argument(logits: Tensor, strides: Iterable[int]) -> tuple[int, list[int], int]:
    """Logits ``[*, C]`` as every kernel takes them, with their strides over the merged leading dimensions."""
    return logits.data_ptr(), list(strides), logits.stride(-1)


def address(tensor: Tensor | None) -> int:
    """The tensor's address; 0 stands for an output that is not wanted."""
    return 0 if tensor is None else tensor.data_ptr()


def _emulated() -> bool:
    try:
        return cuda_module().EMULATED
    except NativeUnavailable:
        return False
