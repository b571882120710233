"""The reconstruction objective in plain PyTorch: by a second backward pass for any network, in closed form for ReLU perceptrons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastmem.ops._kkt.network import Layer
from fastmem.ops._kkt.problem import Problem, Solved, margin_directions
from fastmem.ops._registry import Backend, register

__all__ = ["closed_form", "double_backward"]

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


def forward(problem: Problem) -> Solved:
    """Losses and gradients, see :func:`fastmem.ops.kkt_residual.kkt_residual`."""
    return double_backward(problem) if problem.by_autograd else closed_form(problem)


# ------------------------------------------------------------------------------------------ by automatic differentiation


def double_backward(problem: Problem) -> Solved:
    """One problem after the other, by autograd through autograd."""
    solved = []
    for index in range(len(problem.x)):
        labels = None if problem.labels is None else problem.labels[index]
        directions = None if problem.directions is None else problem.directions[index]
        alpha = None if problem.alpha is None else problem.alpha[index]
        solved.append(_one(problem, problem.x[index], problem.c[index], directions, labels, alpha))
    return Solved(*(torch.stack(part) for part in zip(*solved, strict=True)))


def _one(
    problem: Problem, x: Tensor, c: Tensor, directions: Tensor | None, labels: Tensor | None, alpha: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    targets = problem.network.targets
    with torch.enable_grad():
        weights = {
            name: value.detach().requires_grad_()
            for name, value in problem.network.model.named_parameters()
            if name in targets
        }
        x, c = x.detach().requires_grad_(), c.detach().requires_grad_()
        with _ModifiedReLUs(alpha):
            outputs = functional_call(problem.network.model, weights, (x,)).reshape(len(x), -1)
        if labels is not None:
            directions = margin_directions(outputs.detach(), labels)
        scores = outputs.sum(-1) if directions is None else (outputs * directions).sum(-1)
        sums = torch.autograd.grad((scores * c).sum(), list(weights.values()), create_graph=True, allow_unused=True)
        losses = [
            (targets[name] - (torch.zeros_like(weights[name]) if total is None else total)).square().sum()
            for name, total in zip(weights, sums, strict=True)
        ]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), [x, c])
    grad_x, grad_c = gradients
    return torch.stack(losses).detach().double(), grad_x, grad_c


class _ModifiedReLU(torch.autograd.Function):
    """``relu(z)`` whose derivative is ``sigmoid(alpha z)``, in every further backward pass too."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        ctx.alpha = alpha
        return z.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * torch.sigmoid(ctx.alpha * z), None


class _ModifiedReLUs(TorchFunctionMode):
    """Replaces every ReLU that a network computes; with no slope, none."""

    def __init__(self, alpha: Tensor | None) -> None:
        super().__init__()
        self.alpha = alpha

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if self.alpha is not None and function in _RELUS:
            return _ModifiedReLU.apply(arguments[0], self.alpha)
        return function(*arguments, **(options or {}))


# ------------------------------------------------------------------------------------------------------- in closed form


def closed_form(problem: Problem) -> Solved:
    """Every residual and gradient from one pass up and one down; a layer with few candidates in its Gram form."""
    layers, slopes, curves = problem.network.layers, [], []
    a, z = [problem.x.flatten(2)], []
    for layer in layers:
        z.append(_linear(problem, a[-1], layer))
        if layer is not layers[-1]:
            slope, curve = _derivatives(problem, z[-1])
            slopes.append(slope)
            curves.append(curve)
            a.append(z[-1].relu())
    directions = _directions(problem, z[-1])
    d = [problem.c.unsqueeze(-1) * directions]
    for layer, slope in zip(layers[:0:-1], slopes[::-1], strict=True):
        d.insert(0, problem.down(d[0], layer) * slope)

    residuals = [
        (_GramResidual if problem.uses_gram(layer) else _DirectResidual)(problem, layer, a[at], d[at], z[at])
        for at, layer in enumerate(layers)
    ]
    u: list[Tensor] = []
    for at, (layer, residual) in enumerate(zip(layers, residuals, strict=True)):
        onward = problem.up(u[-1] * slopes[at - 1], layer) if at else 0
        u.append(2 * residual.up() + onward)
    grad_c = (u[-1] * directions).sum(-1)

    b: Tensor | None = None
    for at in reversed(range(len(layers))):
        down = 2 * residuals[at].down()
        if b is not None:
            down = down + problem.down(b, layers[at])
        b = slopes[at - 1] * down + curves[at - 1] * d[at - 1] * u[at - 1] if at else down
    assert b is not None
    losses = torch.stack([loss for residual in residuals for loss in residual.losses()], dim=-1)
    return Solved(losses, b.reshape(problem.x.shape), grad_c)


def _derivatives(problem: Problem, z: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of the activation, and (first derivative of that, divided by it) times it: ``alpha (1 - s)``."""
    if problem.alpha is None:
        return (z > 0).to(z.dtype), torch.zeros((), dtype=z.dtype, device=z.device)
    slope = torch.sigmoid(problem.slopes(z) * z)
    return slope, problem.slopes(z) * (1 - slope)


def _directions(problem: Problem, outputs: Tensor) -> Tensor:
    if problem.labels is not None:
        return margin_directions(outputs, problem.labels)
    return torch.ones_like(outputs) if problem.directions is None else problem.directions


def _linear(problem: Problem, a: Tensor, layer: Layer) -> Tensor:
    z = problem.up(a, layer)
    return z if layer.bias is None else z.add_(layer.bias)


class _DirectResidual:
    """``G - T`` of a layer as it stands, [S, outputs, inputs]."""

    def __init__(self, problem: Problem, layer: Layer, a: Tensor, d: Tensor, z: Tensor) -> None:
        wide = (lambda value: value.double()) if problem.precision == "compensated" else (lambda value: value)
        self.problem, self.a, self.d = problem, a, d
        self.residual = problem.product(wide(d).mT, wide(a)) - layer.weight_target
        self.narrow = self.residual.to(a.dtype)
        self.of_bias = None if layer.bias_target is None else wide(d).sum(-2) - layer.bias_target

    def up(self) -> Tensor:
        half = self.problem.product(self.a, self.narrow.mT)
        return half if self.of_bias is None else half + self.of_bias.to(half.dtype).unsqueeze(-2)

    def down(self) -> Tensor:
        return self.problem.product(self.d, self.narrow)

    def losses(self) -> list[Tensor]:
        parts = [self.residual] if self.of_bias is None else [self.residual, self.of_bias]
        return [part.double().square().flatten(1).sum(-1) for part in parts]


class _GramResidual:
    """``G - T`` of a layer as its products with ``a`` and ``d`` see it, from m x m matrices."""

    def __init__(self, problem: Problem, layer: Layer, a: Tensor, d: Tensor, z: Tensor) -> None:
        self.problem, self.layer, self.a, self.d = problem, layer, a, d
        compensated = problem.precision == "compensated"
        self.wide = (lambda value: value.double()) if compensated else (lambda value: value)
        with_bias = layer.bias_target is not None
        a_wide, d_wide = self.wide(a), self.wide(d)
        # What the residual would be if all sums of gradients were zero: a T^T + t, at hand where T is the weight.
        if layer.targets_itself and not compensated:
            self.none = z
        else:
            self.none = problem.product(a_wide, self.wide(layer.weight_target).mT)
            if layer.bias_target is not None:
                self.none = self.none + self.wide(layer.bias_target)
        self.half = problem.product(problem.product(a_wide, a_wide.mT) + float(with_bias), d_wide) - self.none

    def up(self) -> Tensor:
        return self.half.to(self.a.dtype)

    def down(self) -> Tensor:
        d, a, product = self.wide(self.d), self.wide(self.a), self.problem.product
        return (product(product(d, d.mT), a) - product(d, self.wide(self.layer.weight_target))).to(self.a.dtype)

    def losses(self) -> list[Tensor]:
        layer, d = self.layer, self.d.double()
        size = layer.weight_target.double().square().sum()
        if layer.bias_target is not None:
            size = size + layer.bias_target.double().square().sum()
        both = size + (d * (self.half.double() - self.none.double())).flatten(1).sum(-1)
        if layer.bias_target is None:
            return [both.clamp(min=0)]
        of_bias = (layer.bias_target.double() - d.sum(-2)).square().sum(-1)
        return [(both - of_bias).clamp(min=0), of_bias]


register(
    Backend(
        op="kkt_residual",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda problem: None,
        forward=forward,
    )
)
