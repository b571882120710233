"""The operators as Triton kernels. Triton comes with CUDA builds of PyTorch and is no dependency of fastmem.

With ``TRITON_INTERPRET=1`` in the environment before the first import of Triton the kernels run in its interpreter, on
CPU tensors and very slowly: this is how they are tested where there is no GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmem.ops._leading import leading

__all__ = [
    "MAX_LEADING_DIMS",
    "OPTIONS",
    "alignment",
    "ceil_divide",
    "gradient_like",
    "inner_sizes",
    "interpreted",
    "launching",
    "longest_row",
    "processors",
    "row_segments",
    "tile_elements",
    "tile_for",
    "triton_dtype",
    "walk",
    "why_elsewhere",
    "why_unavailable",
    "why_unsupported",
]

#: Elements of a tile that one row fills, by 4 warps: 8 in every thread. A tile of several rows has half of that, for
#: it keeps values of rows as well, and so has one of float64. More would spill registers.
TILE = 1024
#: The longest row that is held in one tile, by 8 warps.
LONGEST_ROW = 2 * TILE
#: Products are fused into additions, which halves the work of a polynomial. From Triton 3.10 on only on request.
OPTIONS = {"enable_fp_fusion": True}
#: Leading dimensions of unrelated strides that the kernels walk through.
MAX_LEADING_DIMS = 3
_OLDEST_VERSION = (3, 6)
_OLDEST_CAPABILITY = (8, 0)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_unavailable() -> str | None:
    """``None`` if the kernels can run on this machine, else the reason why not. Does not import Triton."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_VERSION:
        return f"Triton {version} is older than {'.'.join(map(str, _OLDEST_VERSION))}"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() is False"
    if torch.version.cuda is None:
        return "this PyTorch is no CUDA build"
    return None


def why_elsewhere(tensor: Tensor) -> str | None:
    """``None`` if the kernels run on the tensor's device, else the reason why not."""
    if interpreted():
        if tensor.device.type != "cpu":
            return "Triton's interpreter runs on the CPU (TRITON_INTERPRET=1)"
    elif tensor.device.type != "cuda":
        return f"it computes on CUDA devices, and these tensors are on {tensor.device}"
    else:
        capability = torch.cuda.get_device_capability(tensor.device)
        if capability < _OLDEST_CAPABILITY:
            return f"the device has compute capability {capability[0]}.{capability[1]}, below 8.0"
    return None


def why_unsupported(*operands: Tensor) -> str | None:
    """``None`` if the kernels take ``[*, C]`` operands of these devices and sizes, else the reason why not."""
    first = operands[0]
    if (reason := why_elsewhere(first)) is not None:
        return reason
    if first.shape[-1] > 2**30:
        return "more than 2^30 classes"
    if first.ndim > MAX_LEADING_DIMS + 1 and len(leading(*operands).sizes) > MAX_LEADING_DIMS:
        return f"more than {MAX_LEADING_DIMS} leading dimensions of unrelated strides"
    return None


def launching(tensor: Tensor) -> AbstractContextManager[object]:
    """The context in which kernels on the tensor's device are launched."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; two stand for the interpreter."""
    if tensor.device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def tile_elements(dtype: torch.dtype) -> int:
    """Elements of a tile that one row fills, for sums of this dtype."""
    return TILE if dtype != torch.float64 else TILE // 2


def longest_row(dtype: torch.dtype) -> int:
    """The longest row that is held in one tile."""
    return LONGEST_ROW if dtype != torch.float64 else LONGEST_ROW // 2


def tile_for(classes: int, longest: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows and width of a tile, a power of two from 16 to ``longest`` that holds a row if it can, and its warps."""
    block = min(max(16, 1 << (classes - 1).bit_length()), longest)
    elements = tile_elements(dtype)
    if block >= elements:
        return 1, block, 4 * block // elements
    return max(1, elements // 2 // block), block, 4


def row_segments(logits: Tensor, rows: int, dtype: torch.dtype) -> int:
    """Into how many segments long rows are cut: enough programs to fill the device, none below four tiles."""
    return max(1, min(32 * processors(logits) // rows, logits.shape[-1] // (4 * tile_elements(dtype)), 32))


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of an accumulation dtype."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def inner_sizes(sizes: Sequence[int]) -> tuple[int, int]:
    """All sizes but the first, of up to three."""
    padded = [*sizes, 1, 1, 1]
    return padded[1], padded[2]


def walk(strides: Sequence[int], align: int) -> tuple[int, int, int]:
    """Strides over up to three dimensions, in units of the alignment."""
    padded = [*(stride // align for stride in strides), 0, 0, 0]
    return padded[0], padded[1], padded[2]


def gradient_like(operand: Tensor) -> Tensor:
    """Room for the gradient of an operand. Triton's interpreter would truncate to bfloat16 where a GPU rounds."""
    dtype = torch.float32 if interpreted() and operand.dtype == torch.bfloat16 else operand.dtype
    return torch.empty(operand.shape, dtype=dtype, device=operand.device)


def ceil_divide(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def alignment(operands: Sequence[Tensor], strides: Sequence[Sequence[int]], classes: int) -> int:
    """Elements of which every row's start and length are multiples, so that loads may take 16 bytes at a time.

    Args:
        operands: Tensors of one dtype with rows of ``classes`` elements.
        strides: Of each, over its leading dimensions.
        classes: Their last dimension.

    Returns:
        The elements of 16 bytes, or 1 where some row is not contiguous or starts between.
    """
    elements = 16 // operands[0].element_size()
    aligned = classes % elements == 0 and all(
        operand.stride(-1) == 1 and operand.data_ptr() % 16 == 0 and all(stride % elements == 0 for stride in own)
        for operand, own in zip(operands, strides, strict=True)
    )
    return elements if aligned else 1
