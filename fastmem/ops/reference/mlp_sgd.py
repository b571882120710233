"""Gradient descent on perceptrons in plain PyTorch, one model and one step after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.mlp_sgd import Dense, Rule, Visit


def forward(visits: Sequence[Visit], rule: Rule) -> list[Tensor]:
    """The losses; weights and momenta are moved in place."""
    return [_visit(visit, rule) for visit in visits]


def _visit(visit: Visit, rule: Rule) -> Tensor:
    losses = []
    steps = zip(itertools.pairwise(visit.bounds.tolist()), visit.rates.tolist(), strict=True)
    for (begin, end), rate in steps:
        rows = visit.rows[begin:end]
        losses.append(_step(visit.layers, visit.x[rows], visit.y[rows], rate, rule))
    return torch.stack(losses).double().cpu()


def _step(layers: Sequence[Dense], x: Tensor, y: Tensor, rate: float, rule: Rule) -> Tensor:
    inputs = [x]
    for layer in layers[:-1]:
        inputs.append(F.linear(inputs[-1], layer.weight, layer.bias).relu_())
    log_p = F.linear(inputs[-1], layers[-1].weight, layers[-1].bias).log_softmax(dim=1)
    smoothing, classes = rule.label_smoothing, log_p.shape[1]
    target = F.one_hot(y, classes).to(log_p) * (1 - smoothing) + smoothing / classes
    slope = (log_p.exp() - target) / len(x)
    for layer, given in zip(reversed(layers), reversed(inputs), strict=True):
        before = slope
        slope = (before @ layer.weight) * (given > 0)
        _move(layer.weight, layer.weight_speed, before.T @ given, rate, rule)
        _move(layer.bias, layer.bias_speed, before.sum(dim=0), rate, rule)
    return -(target * log_p).sum(dim=1).mean()


def _move(weight: Tensor, speed: Tensor, gradient: Tensor, rate: float, rule: Rule) -> None:
    gradient.add_(weight, alpha=rule.weight_decay)
    speed.mul_(rule.momentum).add_(gradient)
    weight.sub_(gradient.add_(speed, alpha=rule.momentum) if rule.nesterov else speed, alpha=rate)


register(
    Backend(
        op="mlp_sgd",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda visits, rule: None,
        forward=forward,
    )
)
