"""The Gram form of the reconstruction objective on a GPU: products by torch, the chains between them by Triton kernels.

Roof of the chains: memory traffic, 4 and 6 elements moved for each activation; of the whole, the products.

Reasoned, compiled ahead of time and run in Triton's interpreter, but not yet measured: no GPU was at hand.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._kkt.gram import solve, why_no_gram
from fastmem.ops._kkt.problem import Problem, Solved
from fastmem.ops._registry import Backend, register
from fastmem.ops.triton import OPTIONS, launching, triton_dtype, why_elsewhere, why_unavailable

__all__ = ["forward"]

_BLOCK = 1024


def forward(problem: Problem) -> Solved:
    """Losses and gradients, see :func:`fastmem.ops.kkt_residual.kkt_residual`."""
    return solve(problem, _Kernels(problem))


class _Kernels:
    """The steps of :mod:`fastmem.ops._kkt.gram` by torch and Triton."""

    def __init__(self, problem: Problem) -> None:
        assert problem.alpha is not None, "this backend takes the modified ReLU only"
        self.problem, self.layers = problem, problem.network.layers
        self.in_parts = problem.precision == "tf32x3"
        self.alpha = problem.alpha
        self.options = {"TYPE": triton_dtype(problem.network.dtype), "BLOCK": _BLOCK, "num_warps": 4, **OPTIONS}

    def up(self, at: int, a: Tensor) -> Tensor:
        return self.problem.up(a, self.layers[at])

    def down(self, at: int, b: Tensor) -> Tensor:
        return self.problem.down(b, self.layers[at])

    def gram(self, a: Tensor, plus: float = 0.0) -> Tensor:
        if self.in_parts:
            return self.problem.product(a, a.mT).add_(plus)
        return torch.baddbmm(a.new_full((1, 1, 1), plus), a, a.mT)

    def product(self, k: Tensor, d: Tensor) -> Tensor:
        return self.problem.product(k, d)

    def add_product_(self, out: Tensor, k: Tensor, a: Tensor) -> None:
        if self.in_parts:
            out.add_(self.problem.product(k, a), alpha=2.0)
        else:
            out.baddbmm_(k, a, alpha=2.0)

    def activate(self, at: int, z: Tensor) -> tuple[Tensor, Tensor]:
        from fastmem.ops.triton._kkt_kernels import kkt_activate

        bias = self.layers[at].bias
        post, slope = torch.empty_like(z), torch.empty_like(z)
        with launching(z):
            kkt_activate[(z.shape[0] * z.shape[1],)](
                z, z if bias is None else bias, self.alpha, post, slope, z.shape[1], z.shape[2],
                HAS_BIAS=bias is not None, **self.options,
            )  # fmt: skip
        return post, slope

    def rise(self, h: Tensor, z: Tensor, s: Tensor, d: Tensor, onward: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        from fastmem.ops.triton._kkt_kernels import kkt_rise

        v = torch.empty_like(h) if onward is None else onward
        curve, inner = torch.empty_like(h), torch.empty(h.shape[:2], dtype=torch.float64, device=h.device)
        with launching(h):
            kkt_rise[(h.shape[0] * h.shape[1],)](
                h, z, s, d, self.alpha, v, curve, inner, h.shape[1], h.shape[2],
                ONWARD=onward is not None, **self.options,
            )  # fmt: skip
        return v, curve, inner


def _supports(problem: Problem) -> str | None:
    tensor = next(iter(problem.network.targets.values()))
    return why_elsewhere(tensor) or why_no_gram(problem)


register(
    Backend(
        op="kkt_residual",
        name="triton",
        # On CPU tensors (the interpreter) it serves tests, and never by itself.
        priority=lambda problem: -1 if problem.network.device.type == "cpu" else 20,
        available=why_unavailable,
        supports=_supports,
        forward=forward,
    )
)
