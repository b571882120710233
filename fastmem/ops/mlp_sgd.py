"""Consecutive steps of stochastic gradient descent on many ReLU perceptrons, each on its own records.

A step of a small network is a dozen operators of microseconds each, and calling them is what costs; a step of a larger
one is three matrix products a layer, between which activations, gradients and momenta travel through memory. Here a
whole visit to a model is one call: records are read through their index, and the product that sums a gradient moves
momentum and weights at once, so the gradient is never stored. Models do not touch each other: one thread each.

The loss is the mean cross-entropy over the batch, with targets ``(1 - s) onehot + s / C``. With ``g`` its gradient plus
``weight_decay`` times the weight, as in ``torch.optim.SGD``: ``v <- momentum v + g``, ``w <- w - rate u`` with ``u = v``,
or ``g + momentum v`` in Nesterov's form.

Roof: arithmetic, ``6 B (sum in x out) - 2 B in_0 x out_0`` operations a step and model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._registry import select

__all__ = ["Dense", "Rule", "Visit", "mlp_sgd"]


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer and its momentum, moved in place; all contiguous, of the dtype of the records, on their device.

    Args:
        weight: [outputs, inputs].
        bias: [outputs].
        weight_speed: Momentum of the weight; zeros before the first step.
        bias_speed: Momentum of the bias.
    """

    weight: Tensor
    bias: Tensor
    weight_speed: Tensor
    bias_speed: Tensor


@dataclass(frozen=True, eq=False)
class Visit:
    """Steps of one model.

    Args:
        layers: From the inputs on; a ReLU follows each but the last.
        x: Records [N, D], float32 or float64, rows without gaps; several visits may read the same ones.
        y: Their labels, int64 [N], within 0 to C - 1.
        rows: The records of the steps one after the other, int64 [n].
        bounds: Where in ``rows`` each step begins and the last one ends, ascending, int64 [steps + 1] on the CPU.
        rates: Learning rates, float64 [steps] on the CPU.
    """

    layers: Sequence[Dense]
    x: Tensor
    y: Tensor
    rows: Tensor
    bounds: Tensor
    rates: Tensor


@dataclass(frozen=True)
class Rule:
    """What the steps of all models have in common.

    Args:
        momentum: Factor of the former speed.
        nesterov: Nesterov's form of the momentum.
        weight_decay: Factor of the weights added to the gradient.
        label_smoothing: Share of the target spread evenly over all classes.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0


@torch.no_grad()
def mlp_sgd(visits: Sequence[Visit], rule: Rule) -> list[Tensor]:
    """Take the steps of every visit; weights, biases and momenta are moved in place.

    A model's result is decided by its own visit: not by the others, nor by the number of threads. One whose logits are
    no longer finite has the loss NaN.

    Args:
        visits: One for each model.
        rule: Of the optimiser and the loss.

    Returns:
        The mean loss of each step before it, float64 [steps] on the CPU, one tensor a visit.

    Raises:
        InputError: Shapes, dtypes or layouts do not fit, an index is out of range, or a forced backend cannot run.
    """
    for visit in visits:
        _check(visit)
    return select("mlp_sgd", visits, rule).forward(visits, rule)


def _check(visit: Visit) -> None:
    x, width = visit.x, visit.x.shape[-1]
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.float64) or not x.is_contiguous():
        raise InputError("x", f"{x.dtype} of shape {list(x.shape)}", "give contiguous float32 or float64 [N, D]")
    for layer in visit.layers:
        outputs = len(layer.bias)
        for name, shape in (("weight", (outputs, width)), ("bias", (outputs,))):
            for tensor in (getattr(layer, name), getattr(layer, f"{name}_speed")):
                if tensor.shape != shape or tensor.dtype != x.dtype or not tensor.is_contiguous():
                    given = f"{tensor.dtype} of shape {list(tensor.shape)}"
                    raise InputError(name, given, f"give contiguous {x.dtype} of shape {list(shape)}")
        width = outputs
    for name, labels in (("y", visit.y), ("rows", visit.rows), ("bounds", visit.bounds)):
        if labels.dtype != torch.int64 or labels.ndim != 1 or not labels.is_contiguous():
            raise InputError(name, f"{labels.dtype} of shape {list(labels.shape)}", "give contiguous int64 [n]")
    sizes = visit.bounds.diff()
    if not len(sizes) or int(visit.bounds[0]) < 0 or int(visit.bounds[-1]) > len(visit.rows) or int(sizes.min()) < 1:
        raise InputError("bounds", f"{visit.bounds.tolist()[:8]}", f"ascend within 0 and {len(visit.rows)}")
    if visit.rates.dtype != torch.float64 or visit.rates.shape != sizes.shape or not visit.rates.is_contiguous():
        raise InputError("rates", f"{visit.rates.dtype} [{len(visit.rates)}]", f"give float64 [{len(sizes)}]")
    _check_range("rows", visit.rows, len(x))
    if len(visit.y) != len(x):
        raise InputError("y", f"{len(visit.y)} labels for {len(x)} records", "give one a record")
    _check_range("y", visit.y, width)


def _check_range(name: str, values: Tensor, count: int) -> None:
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= count:
        raise InputError(name, f"values from {low} to {high}", f"give 0 to {count - 1}")
