"""The reconstruction objective of ReLU perceptrons on the CPU: Gram form, products and chains by the C++ kernels.

The weights are packed once a network, in both orientations; a product of few rows is otherwise slower than its arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.ops._kkt.gram import solve, why_no_gram
from fastmem.ops._kkt.network import KktNetwork
from fastmem.ops._kkt.problem import Problem, Solved
from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register

_FUNCTIONS = ("isa", "kkt_panel", "kkt_pack", "kkt_product", "kkt_activate", "kkt_rise")


@dataclass(frozen=True, eq=False)
class _Packed:
    """A right operand [depth, columns] in panels."""

    panels: Tensor
    depth: int
    columns: int

    @classmethod
    def of(cls, matrix: Tensor) -> _Packed:
        (depth, columns), native = matrix.shape, cpu_module()
        code = DTYPE_CODES[matrix.dtype]
        width = native.kkt_panel(code)
        panels = matrix.new_empty(-(-columns // width) * depth * width)
        native.kkt_pack(
            matrix.data_ptr(), *matrix.stride(), depth, columns, panels.data_ptr(), code, torch.get_num_threads()
        )
        return cls(panels, depth, columns)


def forward(problem: Problem) -> Solved:
    """Losses and gradients, see :func:`fastmem.ops.kkt_residual.kkt_residual`."""
    return solve(problem, _Native(problem))


class _Native:
    """The steps of :mod:`fastmem.ops._kkt.gram` by the C++ kernels."""

    def __init__(self, problem: Problem) -> None:
        assert problem.alpha is not None, "this backend takes the modified ReLU only"
        self.network, self.alpha = problem.network, problem.alpha
        self.native, self.threads = cpu_module(), torch.get_num_threads()
        self.code = DTYPE_CODES[problem.network.dtype]

    def up(self, at: int, a: Tensor) -> Tensor:
        return _product(a, _packs(self.network, at)[0])

    def down(self, at: int, b: Tensor) -> Tensor:
        return _product(b, _packs(self.network, at)[1])

    def gram(self, a: Tensor, plus: float = 0.0) -> Tensor:
        result = a.new_empty(a.shape[0], a.shape[1], a.shape[1])
        if plus:
            result.fill_(plus)
        return _product(a, a.mT, out=result, beta=1.0 if plus else 0.0, symmetric=True)

    def product(self, k: Tensor, d: Tensor) -> Tensor:
        return _product(k, d)

    def add_product_(self, out: Tensor, k: Tensor, a: Tensor) -> None:
        _product(k, a, out=out, alpha=2.0, beta=1.0)

    def activate(self, at: int, z: Tensor) -> tuple[Tensor, Tensor]:
        bias = self.network.layers[at].bias
        post, slope = torch.empty_like(z), torch.empty_like(z)
        self.native.kkt_activate(
            z.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            self.alpha.data_ptr(),
            z.shape[1],
            post.data_ptr(),
            slope.data_ptr(),
            z.shape[0] * z.shape[1],
            z.shape[2],
            self.code,
            self.threads,
        )
        return post, slope

    def rise(self, h: Tensor, z: Tensor, s: Tensor, d: Tensor, onward: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        v = torch.empty_like(h) if onward is None else onward
        curve, inner = torch.empty_like(h), torch.empty(h.shape[:2], dtype=torch.float64)
        self.native.kkt_rise(
            h.data_ptr(),
            z.data_ptr(),
            s.data_ptr(),
            d.data_ptr(),
            self.alpha.data_ptr(),
            h.shape[1],
            v.data_ptr(),
            curve.data_ptr(),
            inner.data_ptr(),
            onward is not None,
            h.shape[0] * h.shape[1],
            h.shape[2],
            self.code,
            self.threads,
        )
        return v, curve, inner


def _packs(network: KktNetwork, at: int) -> tuple[_Packed, _Packed]:
    """A weight as the right operand of the way up (transposed) and of the way down."""
    # (panels are as wide as the kernels' instruction set wants them)
    key = ("packs", at, cpu_module().isa())
    if key not in network.notes:
        weight = network.layers[at].weight
        network.notes[key] = (_Packed.of(weight.T), _Packed.of(weight))
    return network.notes[key]


def _product(
    a: Tensor,
    b: Tensor | _Packed,
    *,
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    symmetric: bool = False,
) -> Tensor:
    """``alpha a b + beta out``: a packed operand serves the rows of all problems, others belong to one each."""
    problems, rows, depth = a.shape
    columns = b.columns if isinstance(b, _Packed) else b.shape[-1]
    if out is None:
        out = a.new_empty(problems, rows, columns)
    if isinstance(b, _Packed):
        right, rows, batch = (b.panels.data_ptr(), 0, 0, 0), problems * rows, 1
    else:
        right, batch = (b.data_ptr(), b.stride(1), b.stride(2), b.stride(0)), problems
    cpu_module().kkt_product(
        a.data_ptr(),
        a.stride(1),
        a.stride(0),
        *right,
        out.data_ptr(),
        columns,
        out.stride(0),
        batch,
        rows,
        depth,
        columns,
        alpha,
        beta,
        symmetric,
        DTYPE_CODES[a.dtype],
        torch.get_num_threads(),
    )
    return out


def _supports(problem: Problem) -> str | None:
    device = problem.network.device.type
    if device != "cpu":
        return f"it computes on the CPU, and this model is on {device}"
    return "a CPU has no TF32" if problem.precision == "tf32x3" else why_no_gram(problem)


register(
    Backend(
        op="kkt_residual",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu(*_FUNCTIONS),
        supports=_supports,
        forward=forward,
    )
)
