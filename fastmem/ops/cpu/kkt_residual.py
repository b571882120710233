"""The reconstruction objective of ReLU perceptrons on the CPU: Gram form, products and chains by the C++ kernels.

The weights are packed once a network, in both orientations; a product of few rows is otherwise slower than its arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.ops._kkt.network import KktNetwork, Layer
from fastmem.ops._kkt.problem import Problem, Solved, margin_directions
from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register

_FUNCTIONS = ("kkt_pack", "kkt_product", "kkt_activate", "kkt_rise")

# Above this many candidates the direct form takes fewer operations by so much that the library's products win.
_MOST_CANDIDATES = 1.0


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
    layers = problem.network.layers
    *hidden, top = layers
    packs = [_packs(problem.network, at) for at in range(len(hidden))]
    alpha = problem.alpha
    assert alpha is not None
    native, threads = cpu_module(), torch.get_num_threads()
    a, z, slopes = [problem.x.flatten(2).contiguous()], [], []
    lead = problem.c.shape
    for layer, (up, _) in zip(hidden, packs, strict=True):
        pre = _product(a[-1], up)
        post, slope = torch.empty_like(pre), torch.empty_like(pre)
        native.kkt_activate(
            pre.data_ptr(),
            0 if layer.bias is None else layer.bias.data_ptr(),
            alpha.data_ptr(),
            lead[1],
            post.data_ptr(),
            slope.data_ptr(),
            lead.numel(),
            pre.shape[-1],
            DTYPE_CODES[pre.dtype],
            threads,
        )
        z.append(pre)
        a.append(post)
        slopes.append(slope)

    # The last layer has as many outputs as the network: a handful, nothing for kernels.
    residual = _Top(problem, top, a[-1])
    d = [residual.below.mul_(slopes[-1])]
    for (_, down), slope in zip(packs[:0:-1], slopes[-2::-1], strict=True):
        d.insert(0, _product(d[0], down).mul_(slope))

    onward: Tensor | None = None
    curves, losses = [], []
    for at, layer in enumerate(hidden):
        half = _product(_gram(a[at], float(layer.bias is not None)), d[at])
        v = torch.empty_like(half) if onward is None else onward
        curve, loss = torch.empty_like(half), torch.empty(lead, dtype=torch.float64)
        native.kkt_rise(
            half.data_ptr(),
            z[at].data_ptr(),
            slopes[at].data_ptr(),
            d[at].data_ptr(),
            alpha.data_ptr(),
            lead[1],
            v.data_ptr(),
            curve.data_ptr(),
            loss.data_ptr(),
            onward is not None,
            lead.numel(),
            half.shape[-1],
            DTYPE_CODES[half.dtype],
            threads,
        )
        curves.append(curve)
        losses.extend(_losses(problem.network, at, d[at], loss.sum(-1)))
        onward = _product(v, packs[at + 1][0]) if at + 1 < len(hidden) else v
    assert onward is not None
    grad_c, falling = residual.turn(onward)
    losses.extend(residual.losses())

    for at in reversed(range(len(hidden))):
        back = curves[at].addcmul_(slopes[at], falling)
        falling = _product(back, packs[at][1])
        _product(_gram(d[at]), a[at], out=falling, alpha=2.0, beta=1.0)
    return Solved(torch.stack(losses, dim=-1), falling.reshape(problem.x.shape), grad_c)


class _Top:
    """The last layer: its share of the gradient, and where the way up turns into the way down."""

    def __init__(self, problem: Problem, layer: Layer, a: Tensor) -> None:
        self.layer, self.a = layer, a
        if problem.labels is not None:
            outputs = torch.nn.functional.linear(a, layer.weight, layer.bias)
            self.directions = margin_directions(outputs, problem.labels)
        elif problem.directions is not None:
            self.directions = problem.directions
        else:
            self.directions = a.new_ones(1, 1, 1).expand(*a.shape[:2], len(layer.weight))
        self.d = problem.c.unsqueeze(-1) * self.directions
        self.below = self.d @ layer.weight
        self.residual = torch.baddbmm(layer.weight.unsqueeze(0), self.d.mT, self.a, beta=-1.0)
        self.of_bias = None if layer.bias is None else self.d.sum(-2) - layer.bias

    def turn(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """From what arrives from below: the gradient by the coefficients, and what goes down again."""
        u = torch.add(v @ self.layer.weight.mT, self.a @ self.residual.mT, alpha=2.0)
        if self.of_bias is not None:
            u += 2.0 * self.of_bias.unsqueeze(-2)
        return (u * self.directions).sum(-1), (2.0 * self.d) @ self.residual

    def losses(self) -> list[Tensor]:
        parts = [self.residual] if self.of_bias is None else [self.residual, self.of_bias]
        return [part.double().square().flatten(1).sum(-1) for part in parts]


def _losses(network: KktNetwork, at: int, d: Tensor, inner: Tensor) -> list[Tensor]:
    """Squared residuals of a hidden layer's parameters from the inner product that the kernel summed."""
    layer = network.layers[at]
    sizes = network.notes.get(("sizes", at))
    if sizes is None:
        sizes = [part.double().square().sum() for part in (layer.weight, layer.bias) if part is not None]
        network.notes["sizes", at] = sizes
    both = inner + sum(sizes)
    if layer.bias is None:
        return [both.clamp_(min=0)]
    of_bias = (d.sum(-2) - layer.bias).double().square().sum(-1)
    return [(both - of_bias).clamp_(min=0), of_bias]


def _packs(network: KktNetwork, at: int) -> tuple[_Packed, _Packed]:
    """A weight as the right operand of the way up (transposed) and of the way down."""
    # (panels are as wide as the kernels' instruction set wants them)
    key = ("packs", at, cpu_module().isa())
    if key not in network.notes:
        weight = network.layers[at].weight
        network.notes[key] = (_Packed.of(weight.T), _Packed.of(weight))
    return network.notes[key]


def _gram(a: Tensor, plus: float = 0.0) -> Tensor:
    """``a a^T + plus`` of every problem, [S, m, m]."""
    result = a.new_empty(a.shape[0], a.shape[1], a.shape[1])
    if plus:
        result.fill_(plus)
    _product(a, a.mT, out=result, beta=1.0 if plus else 0.0, symmetric=True)
    return result.tril_().add_(result.tril(-1).mT)


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
    network = problem.network
    if network.device.type != "cpu":
        return f"it computes on the CPU, and this model is on {network.device.type}"
    if problem.by_autograd:
        return network.no_closed_form or "a second backward pass is asked for"
    if len(network.layers) < 2:
        return "the network has no hidden layer"
    if problem.alpha is None:
        return "it is written for the modified ReLU (give alpha)"
    if problem.precision != "native":
        return "it does not widen products to float64"
    if problem.method == "direct":
        return "it computes the Gram form, and the direct form is asked for"
    if not all(layer.targets_itself for layer in network.layers):
        return "it is written for the parameters themselves as targets"
    if problem.method == "auto" and not all(_few(problem, layer) for layer in network.layers[:-1]):
        return "for so many candidates the direct form takes fewer operations"
    return None


def _few(problem: Problem, layer: Layer) -> bool:
    return problem.c.shape[-1] <= _MOST_CANDIDATES * min(layer.weight.shape)


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
