"""The Gram form of a ReLU perceptron as products and two chains of element-wise steps, whoever computes those.

With ``D_l`` the gradients at a hidden layer's outputs, ``Z_l`` its outputs, ``A_l = relu(Z_l)``, ``S_l = sigmoid(alpha Z_l)``
and ``K_l = A_{l-1} A_{l-1}^T`` (plus 1 where the layer has a bias):

    up    H_l = K_l D_l - Z_l,   U_l = 2 H_l + V_{l-1} W_l^T,   V_l = S_l U_l
    down  B_l = S_l Q_l + alpha (1 - S_l) D_l U_l,   Q_{l-1} = (B_l - 2 D_l) W_l + 2 (D_l D_l^T) A_{l-1}

and the squared residual of a layer is ``||theta||^2 + <D_l, H_l - Z_l>``. This holds where the targets are the parameters.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastmem.ops._kkt.network import KktNetwork, Layer
from fastmem.ops._kkt.problem import Problem, Solved, margin_directions

__all__ = ["Steps", "solve", "why_no_gram"]


class Steps(Protocol):
    """What a backend computes; activations are [S, m, width], contiguous."""

    def up(self, at: int, a: Tensor) -> Tensor:
        """``a W^T`` of a hidden layer, new memory."""
        ...

    def down(self, at: int, b: Tensor) -> Tensor:
        """``b W`` of a hidden layer, new memory."""
        ...

    def gram(self, a: Tensor, plus: float = 0.0) -> Tensor:
        """``a a^T + plus`` [S, m, m]."""
        ...

    def product(self, k: Tensor, d: Tensor) -> Tensor:
        """``k d`` of every problem, new memory."""
        ...

    def add_product_(self, out: Tensor, k: Tensor, a: Tensor) -> None:
        """``out += 2 k a``."""
        ...

    def activate(self, at: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the bias to ``z`` in place; ``relu(z)`` and ``sigmoid(alpha z)``."""
        ...

    def rise(self, h: Tensor, z: Tensor, s: Tensor, d: Tensor, onward: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """From ``h = K D``: ``V`` (in ``onward``'s memory), ``alpha (1 - S) D U - 2 D``, and the sums [S, m] of ``D (H - Z)``."""
        ...


def solve(problem: Problem, steps: Steps) -> Solved:
    """Losses and gradients."""
    network = problem.network
    *hidden, top = network.layers
    a, z, slopes = [problem.x.flatten(2).contiguous()], [], []
    for at in range(len(hidden)):
        z.append(steps.up(at, a[-1]))
        post, slope = steps.activate(at, z[-1])
        a.append(post)
        slopes.append(slope)

    # The last layer has as many outputs as the network: a handful, nothing for kernels.
    last = _Top(problem, top, a[-1])
    d = [last.below.mul_(slopes[-1])]
    for at in reversed(range(1, len(hidden))):
        d.insert(0, steps.down(at, d[0]).mul_(slopes[at - 1]))

    onward: Tensor | None = None
    curves, losses = [], []
    for at, layer in enumerate(hidden):
        h = steps.product(steps.gram(a[at], float(layer.bias is not None)), d[at])
        v, curve, inner = steps.rise(h, z[at], slopes[at], d[at], onward)
        curves.append(curve)
        losses.extend(_losses(network, at, d[at], inner.sum(-1)))
        onward = steps.up(at + 1, v) if at + 1 < len(hidden) else v
    assert onward is not None
    grad_c, falling = last.turn(onward)
    losses.extend(last.losses())

    for at in reversed(range(len(hidden))):
        back = curves[at].addcmul_(slopes[at], falling)
        falling = steps.down(at, back)
        steps.add_product_(falling, steps.gram(d[at]), a[at])
    return Solved(torch.stack(losses, dim=-1), falling.reshape(problem.x.shape), grad_c)


def why_no_gram(problem: Problem) -> str | None:
    """Why a problem is not one for :func:`solve`, or None."""
    network = problem.network
    if problem.by_autograd:
        return network.no_closed_form or "a second backward pass is asked for"
    if len(network.layers) < 2:
        return "the network has no hidden layer"
    if problem.alpha is None:
        return "it is written for the modified ReLU (give alpha)"
    if problem.precision == "compensated":
        return "it does not widen products to float64"
    if problem.method == "direct":
        return "it computes the Gram form, and the direct form is asked for"
    if not all(layer.targets_itself for layer in network.layers):
        return "it is written for the parameters themselves as targets"
    if problem.method == "auto" and any(problem.c.shape[-1] > min(layer.weight.shape) for layer in network.layers[:-1]):
        return "for so many candidates the direct form takes fewer operations"
    return None


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
