"""Training images out of a network's weights: candidates whose weighted gradients add up to the weights.

Haim et al. 2022 (arXiv:2206.07758), Buzaglo et al. 2023 (arXiv:2307.01827, several classes, weight decay, regression) and
Loo et al. 2024 (arXiv:2302.01428, differences from the initial weights) search for candidates x and multipliers lambda by
gradient descent on

    sum_p || T_p - s sum_i lambda_i y_i grad_p Phi(theta; x_i) ||^2 + sum relu(x - high)^2 + sum relu(low - x)^2
        + 5 sum_i relu(lambda_min - lambda_i)^2

with s = 1/m as in the released code (``scale="mean"``) or 1, the derivative of every ReLU replaced by a sigmoid. All
settings of a sweep advance in one call of :func:`fastmem.kkt_residual`. The attack sees weights, labels and shapes; whatever
needs the training set is in :mod:`fastmem.metrics.reconstruction` and is called an oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.attacks.reconstruct_graph import Replayed
from fastmem.attacks.reconstruct_settings import (
    PUBLISHED,
    ReconstructSettings,
    balanced_labels,
    checked_settings,
    random_settings,
)
from fastmem.attacks.reconstruct_step import State, Steps
from fastmem.errors import InputError
from fastmem.ops.kkt_residual import KktNetwork

__all__ = [
    "PUBLISHED",
    "ReconstructSettings",
    "Reconstruction",
    "Run",
    "State",
    "balanced_labels",
    "random_settings",
    "reconstruct",
]


@dataclass(frozen=True, eq=False)
class Run:
    """What one setting ended with.

    Attributes:
        settings: The setting.
        x: Candidates [m, *sample], in the attack's space; the last finite ones of a run that diverged.
        multipliers: Lambda [m].
        steps: Iterations at which the residuals were noted [K].
        residuals: Squared residual of each parameter at those, float64 [K, parameters].
        diverged: The iteration after which nothing was finite; None if all was.
        labels: What the candidates were taken for [m].
    """

    settings: ReconstructSettings
    x: Tensor
    multipliers: Tensor
    steps: np.ndarray
    residuals: np.ndarray
    diverged: int | None
    labels: Tensor

    @property
    def loss(self) -> float:
        """The last noted residual of all parameters."""
        return float(self.residuals[-1].sum()) if len(self.residuals) else math.nan


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The runs of an attack.

    Attributes:
        runs: One for each setting, in order.
        parameters: Names of the columns of residuals.
        no_graph: Why the steps were not replayed as a CUDA graph; None if they were.
    """

    runs: tuple[Run, ...]
    parameters: tuple[str, ...]
    no_graph: str | None = None


def reconstruct(
    model: nn.Module | KktNetwork,
    m: int | None = None,
    settings: ReconstructSettings | Sequence[ReconstructSettings] | None = None,
    *,
    sample_shape: Sequence[int],
    labels: Tensor | None = None,
    targets: Mapping[str, Tensor] | None = None,
    log_every: int = 100,
    state: State | None = None,
    on_log: Callable[[State], Any] | None = None,
) -> Reconstruction:
    """Search for training samples in the weights of a network.

    Args:
        model: In eval mode; one output (labels -1 and 1) or several (classes, by the margin).
        m: Candidates; twice the training set is usual. Not needed beside labels.
        settings: One or several, which share iterations, optimizer, step, scale, precision, whether there is an ``alpha``
            and whether there is a ``lambda_min``.
        sample_shape: Of a candidate.
        labels: Of the candidates, [m] or for each setting its own [S, m]; balanced by default, in which case surplus
            candidates of a class go to waste.
        targets: What the gradients should add up to, by parameter name; the weights by default. Loo et al. take the
            difference from the initial weights.
        log_every: Iterations between two notes of the residuals.
        state: Where an earlier call stood, from ``on_log``, to continue from. Same settings and labels.
        on_log: Called at every note with the :class:`State`; what it raises ends the attack.

    Returns:
        A :class:`Reconstruction`.

    Raises:
        InputError: m is 0, labels that are not the network's, a shape that it cannot read, settings that cannot run
            together, or a network that is not in order (:class:`fastmem.ops.kkt_residual.KktNetwork`).
    """
    network = model if isinstance(model, KktNetwork) else KktNetwork.of(model, targets)
    several = checked_settings(settings)
    shape = tuple(int(size) for size in sample_shape)
    outputs = _outputs_of(network, shape)
    labels = _checked_labels(labels, m, outputs, len(several))
    if state is None:
        state = State.begin(several, labels.shape[1], shape, network)
    steps = Steps(network, several, labels, outputs, state)
    replayed = Replayed(steps, network.device)
    iterations = several[0].iterations
    while state.iteration < iterations:
        at = state.iteration + 1
        noted = at % log_every == 0 or at in (1, iterations)
        before = state.x.clone() if noted else state.x
        replayed()
        state.iteration = at
        if noted:
            state.note(steps.losses, before)
            if on_log is not None:
                on_log(state)
            if bool((state.diverged > 0).all()):
                break
    residuals = torch.stack(state.residuals, dim=1).numpy() if state.residuals else np.zeros((len(several), 0, 0))
    dead = state.diverged.tolist()
    runs = tuple(
        Run(
            one,
            (state.safe_x if dead[at] else state.x)[at].clone(),
            state.multipliers[at].clone(),
            np.array(state.steps),
            residuals[at],
            dead[at] or None,
            labels[at],
        )
        for at, one in enumerate(several)
    )
    return Reconstruction(runs, tuple(network.targets), replayed.reason)


def _outputs_of(network: KktNetwork, shape: tuple[int, ...]) -> int:
    """Outputs of the network for one sample; a network that cannot read it says so here."""
    sample = torch.zeros(1, *shape, dtype=network.dtype, device=network.device)
    if not shape or min(shape) < 1:
        raise InputError("sample_shape", f"{shape}", "give the shape of one sample, such as (1, 28, 28)")
    try:
        with torch.no_grad():
            outputs = network.model(sample)
    except Exception as error:  # a user's network may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError("sample_shape", f"{shape}: the network does not read it ({reason})", "give its own") from error
    return int(outputs.reshape(1, -1).shape[1])


def _checked_labels(labels: Tensor | None, m: int | None, outputs: int, count: int) -> Tensor:
    """Labels of every setting's candidates [S, m]."""
    if labels is None:
        if m is None:
            raise InputError("m", "neither m nor labels are given", "give the number of candidates")
        return balanced_labels(m, outputs).expand(count, m).contiguous()
    labels = torch.as_tensor(labels)
    if labels.ndim == 1:
        labels = labels.expand(count, -1)
    if labels.ndim != 2 or labels.shape[1] == 0 or len(labels) != count or (m is not None and labels.shape[1] != m):
        raise InputError("labels", f"shape {list(labels.shape)}", f"give one for each of the {m or 'm'} candidates")
    if outputs == 1:
        if not bool(((labels == 1) | (labels == -1)).all()):
            raise InputError(
                "labels", f"values such as {labels[0, :3].tolist()}", "this network has one output: -1 or 1"
            )
        return labels.to(torch.float32).contiguous()
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= outputs:
        raise InputError("labels", f"values such as {labels[0, :3].tolist()}", f"give classes from 0 to {outputs - 1}")
    return labels.long().contiguous()
