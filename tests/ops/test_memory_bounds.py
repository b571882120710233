"""No kernel on the CPU reads beyond its operands: they lie between pages that may not be touched."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmem.ops import kl_div, logit_stats, use_backend

from .implementations import Implementation, implementations

if not sys.platform.startswith("linux"):
    pytest.skip("protects pages by mprotect", allow_module_level=True)

EXAMPLE = torch.zeros(2, 3)
LABELS = torch.zeros(2, dtype=torch.int64)
PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64, torch.int64: np.int64}

#: Widths around those at which kernels change their ways; 16 and 1000 keep rows aligned.
CLASSES = [2, 3, 10, 16, 31, 33, 65, 100, 129, 1000, 1001, 2049, 5001]


def on_cpu(op: str, *example: Tensor) -> list[object]:
    return [each for each in implementations(op, *example) if each.values[0].device == "cpu"]


@contextmanager
def fenced(values: Tensor, at_end: bool) -> Iterator[Tensor]:
    """The values in pages of their own, right after a page that may not be read, or right before one."""
    size = values.numel() * values.element_size()
    pages = mmap.mmap(-1, (-(-size // PAGE) + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    fences = [base, base + len(pages) - PAGE]
    start = len(pages) - PAGE - size if at_end else PAGE
    array = np.frombuffer(pages, DTYPES[values.dtype], values.numel(), start)
    array[:] = values.flatten().numpy()
    for fence in fences:
        assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), _NO_ACCESS) == 0
    try:
        yield torch.from_numpy(array).view(values.shape)
    finally:
        for fence in fences:
            protect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("implementation", on_cpu("kl_div", EXAMPLE, EXAMPLE))
def test_divergence_stays_within(implementation: Implementation, at_end: bool, dtype: torch.dtype) -> None:
    if implementation.interpreted and dtype is not torch.float32:
        pytest.skip("Triton's interpreter would take long")
    for classes in CLASSES:
        p, q = torch.randn(2, 3, classes).to(dtype)
        with fenced(p, at_end) as own_p, fenced(q, at_end) as own_q, use_backend(implementation.backend):
            a, b = own_p.requires_grad_(), own_q[:1].requires_grad_()
            torch.autograd.grad(kl_div(a, own_q).sum(), a)
            torch.autograd.grad(kl_div(a, b).sum(), (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("implementation", on_cpu("logit_stats", EXAMPLE, LABELS))
def test_statistics_stay_within(implementation: Implementation, at_end: bool, dtype: torch.dtype) -> None:
    if implementation.interpreted and dtype is not torch.float32:
        pytest.skip("Triton's interpreter would take long")
    for classes in CLASSES:
        labels = torch.tensor([0, classes - 1, classes // 2])
        logits = torch.randn(3, classes).to(dtype)
        with fenced(logits, at_end) as own, fenced(labels, at_end) as own_labels, use_backend(implementation.backend):
            a = own.requires_grad_()
            torch.autograd.grad(sum(s.sum() for s in logit_stats(a, own_labels)), a)


@pytest.mark.parametrize("past", [-1, 6])
def test_the_fence_holds(past: int) -> None:
    """In a process of its own: a read of one element too many ends it."""
    code = f"""
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("tests.ops.test_memory_bounds", {__file__!r})
module = importlib.util.module_from_spec(spec)
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
spec.loader.exec_module(module)
with module.fenced(module.torch.zeros(6), at_end={past > 0}) as x:
    ctypes.c_float.from_address(x.data_ptr() + 4 * {past}).value
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0
