"""Leave-one-out moments by the C++ kernel: one table per group of a record serves all targets."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._native import cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1}


def forward(
    phi: Tensor, keep: Tensor, targets: Tensor, partners: Tensor, rules: Tensor, first_sample: int, median: bool
) -> tuple[Tensor | None, ...]:
    """The fields of :class:`fastmem.ops.lira_moments.LiraMoments`; in memory targets lie next to each other."""
    (num_models, num_samples, num_queries), num_targets = phi.shape, len(targets)
    counts = [torch.empty((num_samples, num_targets), dtype=torch.int32) for _ in range(2)]
    means, variances, medians = (
        [torch.empty((num_samples, num_queries, num_targets), dtype=torch.float64) for _ in range(2)] for _ in range(3)
    )
    targets, partners, rules = (part.contiguous() for part in (targets, partners, rules))
    cpu_module().lira_moments(
        phi.data_ptr(),
        _DTYPE_CODES[phi.dtype],
        phi.stride(),
        keep.data_ptr(),
        keep.stride(),
        (num_models, num_samples, num_queries, num_targets),
        targets.data_ptr(),
        partners.data_ptr(),
        rules.data_ptr(),
        first_sample,
        _addresses(counts),
        _addresses(means),
        _addresses(variances),
        _addresses(medians) if median else (0, 0),
        torch.get_num_threads(),
    )
    sides = []
    for count, *moments in zip(counts, means, variances, medians, strict=True):
        mean, variance, middle = (moment.permute(2, 0, 1) for moment in moments)
        sides += [count.T, mean, variance, middle if median else None]
    return tuple(sides)


def _addresses(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _supports(phi: Tensor, *_: object) -> str | None:
    device = phi.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="lira_moments",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("lira_moments"),
        supports=_supports,
        forward=forward,
    )
)
