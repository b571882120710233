"""Operators: tensors in, tensors out; each has a readable reference and faster implementations of its contract."""

from fastmem.ops._registry import explain, operators, use_backend
from fastmem.ops.kl_div import kl_div
from fastmem.ops.logit_stats import LogitStats, logit_margin, logit_stats

__all__ = ["LogitStats", "explain", "kl_div", "logit_margin", "logit_stats", "operators", "use_backend"]
