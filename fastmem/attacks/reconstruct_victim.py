"""Training a network until its weights are a sum of gradients at its training samples: the premise of reconstruction.

The published recipe is a million steps of plain gradient descent (Haim et al. 2022, arXiv:2206.07758). The gradient of a
logistic loss vanishes as the loss does, so a step of constant length has to grow like 1/loss, and minutes are enough:
momentum until every sample is fitted, then plain descent with ``rate = constant / loss``, the constant halved whenever the
loss jumps. (Momentum beyond that point diverges.) It is not gradient flow; ``schedule="published"`` is the original.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmem.errors import InputError, UnknownNameError

__all__ = [
    "SCHEDULES",
    "TASKS",
    "MarginTraining",
    "TrainReport",
    "homogeneous_mlp",
    "sample_margins",
    "train_to_margin",
]

TASKS = ("binary", "multiclass", "regression")
SCHEDULES = ("adaptive", "published")

_SPIKE = 1.5
_SMALLEST_CONSTANT = 1e-5


def homogeneous_mlp(
    inputs: int, outputs: int = 1, hidden: Sequence[int] = (1000, 1000), first_scale: float = 1e-4, seed: int = 1
) -> nn.Sequential:
    """The paper's network: linear layers and ReLUs, a bias in the first layer alone, whose parameters start small.

    Args:
        inputs: Values of a sample, which is flattened.
        outputs: 1, or classes.
        hidden: Widths.
        first_scale: Standard deviation of the first layer's initial parameters; the others start as in PyTorch.
        seed: Of the initial parameters; torch's global random state is left as it was.
    """
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for at, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Linear(wide, narrow, bias=at == 0), nn.ReLU()]
        first = layers[1]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.normal_(std=first_scale)
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, kw_only=True)
class MarginTraining:
    """How a victim is trained, full batch.

    Args:
        task: ``binary`` (labels -1 and 1, logistic loss), ``multiclass`` (cross-entropy), ``regression`` (labels -1 and 1
            as values, squared error).
        schedule: ``adaptive`` or ``published``.
        rate: Learning rate until every sample is fitted; of all steps in the published schedule, which has no momentum.
        momentum: In the first phase of the adaptive schedule.
        constant: Of ``rate = constant / loss`` in its second phase.
        weight_decay: Added to the gradient, as ``weight_decay / 2 ||theta||^2`` in the loss.
        stop_loss: Training ends below this loss; with weight decay or in regression the schedule has no second phase.
        max_epochs: And after so many steps.
    """

    task: str = "binary"
    schedule: str = "adaptive"
    rate: float = 0.1
    momentum: float = 0.9
    constant: float = 0.001
    weight_decay: float = 0.0
    stop_loss: float = 1e-12
    max_epochs: int = 20_000

    def __post_init__(self) -> None:
        for name, accepted in (("task", TASKS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in accepted:
                raise UnknownNameError(name, getattr(self, name), accepted)
        for name in ("rate", "constant", "stop_loss"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(name, f"{getattr(self, name)}", "give a number above 0")
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", f"{self.momentum}", "give a number from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError("weight_decay", f"{self.weight_decay}", "give a number from 0")
        if self.max_epochs < 1:
            raise InputError("max_epochs", f"{self.max_epochs}", "give at least 1")

    @property
    def reaches_margin(self) -> bool:
        """Whether the loss is one that vanishes as the margin grows, so that steps must grow too."""
        return self.schedule == "adaptive" and self.task != "regression" and self.weight_decay == 0


@dataclass(frozen=True)
class TrainReport:
    """What the training came to.

    Args:
        epochs: Steps taken.
        loss: The last loss, without weight decay.
        fitted: Share of the samples on the right side (of regression: within 0.5).
        spikes: How often the loss jumped in the second phase.
        smallest_margin: Of all samples; for regression of the products of value and label.
        largest_over_smallest: Ratio of the margins; 1 where all samples are support vectors.
        near_smallest: Samples within 10% of the smallest margin.
    """

    epochs: int
    loss: float
    fitted: float
    spikes: int
    smallest_margin: float
    largest_over_smallest: float
    near_smallest: int


def train_to_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    training: MarginTraining | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainReport:
    """Train by full-batch gradient descent, in place.

    Args:
        model: Maps [n, *sample] to [n, 1], or [n, classes].
        x: Samples, of the model's dtype, on its device.
        y: Labels [n]: -1 and 1 (float or integer), or classes.
        training: The recipe.
        on_epoch: Called with the number of a step and the loss before it.

    Returns:
        A :class:`TrainReport`.

    Raises:
        InputError: Labels that the task does not know, or a training that diverged.
    """
    training = training or MarginTraining()
    _check_labels(training.task, y)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    speeds = [torch.zeros_like(parameter) for parameter in parameters]
    final, constant, before, spikes, epoch, loss = False, training.constant, math.inf, 0, 0, math.inf
    adaptive = training.schedule == "adaptive"
    for epoch in range(1, training.max_epochs + 1):
        outputs = model(x)
        value = _loss(training.task, outputs, y)
        gradients = torch.autograd.grad(value, parameters)
        loss = float(value.detach())
        if on_epoch is not None:
            on_epoch(epoch, loss)
        if not math.isfinite(loss):
            raise InputError("rate", f"{training.rate}: the training diverged at step {epoch}", "give a smaller one")
        if loss < training.stop_loss:
            break
        if not final and training.reaches_margin and loss < 0.1 and _margins(training.task, outputs, y).min() > 0:
            final = True
            before = loss
        if final and loss > _SPIKE * before:
            spikes += 1
            constant = max(constant / 2, _SMALLEST_CONSTANT)
        before = loss
        with torch.no_grad():
            for parameter, gradient, speed in zip(parameters, gradients, speeds, strict=True):
                if training.weight_decay:
                    gradient = gradient.add(parameter, alpha=training.weight_decay)
                if final:
                    parameter.sub_(gradient, alpha=constant / loss)
                else:
                    speed.mul_(training.momentum if adaptive else 0.0).add_(gradient)
                    parameter.sub_(speed, alpha=training.rate)
    return _report(model, x, y, training, epoch, loss, spikes)


def sample_margins(model: nn.Module, x: Tensor, y: Tensor, task: str) -> Tensor:
    """The margin of each sample [n]: signed output, or the label's logit less the largest other one."""
    with torch.no_grad():
        return _margins(task, model(x), y)


def _report(
    model: nn.Module, x: Tensor, y: Tensor, training: MarginTraining, epochs: int, loss: float, spikes: int
) -> TrainReport:
    margins = sample_margins(model, x, y, training.task)
    least = float(margins.min())
    if training.task == "regression":
        fitted = float(((model(x).squeeze(-1) - y).abs() < 0.5).double().mean())
    else:
        fitted = float((margins > 0).double().mean())
    ratio = float(margins.max()) / least if least > 0 else math.nan
    near = int((margins <= 1.1 * least).sum()) if least > 0 else 0
    return TrainReport(epochs, loss, fitted, spikes, least, ratio, near)


def _loss(task: str, outputs: Tensor, y: Tensor) -> Tensor:
    if task == "multiclass":
        return F.cross_entropy(outputs, y)
    values = outputs.squeeze(-1)
    return F.softplus(-y * values).mean() if task == "binary" else (values - y).square().mean()


def _margins(task: str, outputs: Tensor, y: Tensor) -> Tensor:
    if task != "multiclass":
        return outputs.detach().squeeze(-1) * y
    outputs = outputs.detach()
    own = outputs.gather(1, y[:, None]).squeeze(1)
    others = outputs.scatter(1, y[:, None], -math.inf)
    return own - others.amax(1)


def _check_labels(task: str, y: Tensor) -> None:
    if task == "multiclass":
        if y.dtype != torch.int64 or int(y.min()) < 0:
            raise InputError("y", f"{y.dtype} labels from {float(y.min())}", "give classes as int64 from 0")
    elif not bool(((y == 1) | (y == -1)).all()):
        raise InputError("y", f"labels such as {float(y.flatten()[0])}", "give -1 and 1")
