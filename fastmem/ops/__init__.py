"""Operators: tensors in, tensors out; each has a readable reference and faster implementations of its contract."""

from fastmem.ops._registry import explain, operators, use_backend

__all__ = ["explain", "operators", "use_backend"]
