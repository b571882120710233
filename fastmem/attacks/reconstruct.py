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
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops.kkt_residual import KktNetwork, kkt_residual

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

OPTIMISERS = ("sgd", "adam")
STEPS = ("constant", "adaptive", "cosine")
SCALES = ("mean", "sum")

_MULTIPLIER_PRIOR = 5.0
# The adaptive step. Layers that keep their initial weights leave a residual that never moves (Haim et al.: about 333), so
# a rise is measured against the residual of the first parameter alone.
_GROW, _SHRINK, _WORSE = 1.02, 0.5, 0.2
_LARGEST_FACTOR = 16.0


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """One setting of the attack.

    Args:
        iterations: Steps.
        optimizer: ``sgd`` (the reconstruction papers) or ``adam`` (Loo et al.).
        lr_x: Step size of the candidates.
        lr_lambda: Step size of the multipliers.
        momentum: Of ``sgd``.
        step: ``constant`` as published; ``adaptive``: both step sizes grow while the loss falls, and are halved and the
            momentum dropped where it has risen by a fifth of the first parameter's residual; ``cosine``: they fall to 0
            along half a cosine.
        alpha: Slope of the modified ReLU; None for the network's own derivative.
        lambda_min: Lower bound of the multipliers, by a penalty; None for multipliers of any sign and no penalty.
        init_scale: Standard deviation of the initial candidates.
        scale: ``mean`` divides the sum by m, ``sum`` does not.
        low: Lower end of the pixels' box, in the attack's own space (a mean subtracted).
        high: Upper end.
        precision: As of :func:`fastmem.kkt_residual`.
        seed: Of the initial candidates and multipliers.
    """

    iterations: int = 5000
    optimizer: str = "sgd"
    lr_x: float = 0.03052419903283405
    lr_lambda: float = 1e-4
    momentum: float = 0.9
    step: str = "constant"
    alpha: float | None = 149.86555429083975
    lambda_min: float | None = 0.4470505589528116
    init_scale: float = 0.03497673778414215
    scale: str = "mean"
    low: float = -1.0
    high: float = 1.0
    precision: str = "native"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in (("optimizer", OPTIMISERS), ("step", STEPS), ("scale", SCALES)):
            if getattr(self, name) not in accepted:
                raise UnknownNameError(name, getattr(self, name), accepted)
        for name in ("lr_x", "lr_lambda", "init_scale", "alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(name, f"{value}", "give a number above 0")
        if self.lambda_min is not None and self.lambda_min < 0:
            raise InputError("lambda_min", f"{self.lambda_min}", "give a number from 0, or None for either sign")
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", f"{self.momentum}", "give a number from 0 to below 1")
        if self.iterations < 1:
            raise InputError("iterations", f"{self.iterations}", "give at least 1")
        if not self.low < self.high:
            raise InputError("low", f"{self.low} with high {self.high}", "give low below high")


#: The settings that the papers publish, by the names of their runs.
PUBLISHED: dict[str, ReconstructSettings] = {
    "mnist-kcf9bhbi": ReconstructSettings(iterations=50_000),
    "mnist-rbijxft7": ReconstructSettings(
        iterations=50_000,
        lr_x=0.2821179669627431,
        lambda_min=0.4152673302812194,
        alpha=19.21458586003623,
        init_scale=0.0017419854462879885,
    ),
    "cifar-b9dfyspx": ReconstructSettings(
        iterations=50_000,
        lr_x=0.5549171806490206,
        lambda_min=0.4983026413803425,
        alpha=19.14455192462549,
        init_scale=0.0008857493220221296,
    ),
    "cifar-k60fvjdy": ReconstructSettings(
        iterations=50_000,
        lr_x=0.3462076508871333,
        lambda_min=0.4935914336068267,
        alpha=21.679355102650792,
        init_scale=0.004473685426131403,
    ),
    "multiclass-2": ReconstructSettings(
        iterations=50_001,
        lr_x=0.00136236,
        lr_lambda=0.47933,
        lambda_min=0.20321,
        alpha=39.517,
        init_scale=6.2277e-5,
    ),
    "regression": ReconstructSettings(iterations=50_000, lr_x=0.9518, lambda_min=None, alpha=90.29, init_scale=0.01975),
    "ntk": ReconstructSettings(
        iterations=80_000, optimizer="adam", lr_x=0.02, lr_lambda=0.02, lambda_min=None, alpha=None, init_scale=0.2
    ),
}


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
    """

    runs: tuple[Run, ...]
    parameters: tuple[str, ...]


@dataclass(eq=False)
class State:
    """Where an attack stands: all that it needs to go on, as tensors for a file."""

    iteration: int
    x: Tensor
    multipliers: Tensor
    moments: dict[str, Tensor]
    last_loss: Tensor
    factor: Tensor
    diverged: Tensor
    safe_x: Tensor
    steps: list[int] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    _PLAIN: ClassVar = ("x", "multipliers", "last_loss", "factor", "diverged", "safe_x")

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors by name."""
        noted = {
            "iteration": torch.tensor(self.iteration),
            "steps": torch.tensor(self.steps, dtype=torch.int64),
            "residuals": torch.stack(self.residuals) if self.residuals else torch.zeros(0, dtype=torch.float64),
        }
        moments = {f"moment.{name}": value for name, value in self.moments.items()}
        return {name: getattr(self, name) for name in self._PLAIN} | moments | noted

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> State:
        """What :meth:`tensors` gave, with candidates on a device."""
        far = {name: tensors[name].to(device) for name in ("x", "multipliers", "safe_x")}
        near = {name: tensors[name] for name in ("last_loss", "factor", "diverged")}
        moments = {
            name.removeprefix("moment."): value.to(device)
            for name, value in tensors.items()
            if name.startswith("moment.")
        }
        return cls(
            iteration=int(tensors["iteration"]),
            moments=moments,
            steps=tensors["steps"].tolist(),
            residuals=list(tensors["residuals"]),
            **far,
            **near,
        )


def balanced_labels(m: int, outputs: int = 1, positive: float = 0.5) -> Tensor:
    """Labels for ``m`` candidates where those of the training set are unknown: as many of each kind.

    Args:
        m: How many.
        outputs: Outputs of the network: 1 gives -1 and then 1, else classes from 0 on.
        positive: Share of label 1, where there is one output.

    Raises:
        InputError: There is no candidate.
    """
    if m < 1:
        raise InputError("m", f"{m}", "give at least 1 candidate")
    if outputs == 1:
        negative = m - min(m, math.ceil(m * positive))
        return torch.cat([-torch.ones(negative), torch.ones(m - negative)])
    return (torch.arange(m) * outputs // m).long()


def random_settings(count: int, base: ReconstructSettings, seed: int) -> list[ReconstructSettings]:
    """The random search of the reconstruction papers around a base setting.

    ``init_scale`` is log-uniform on [1e-6, 0.1], ``lr_x`` log-uniform on [1e-5, 1], ``lambda_min`` uniform on
    [0.01, 0.5], ``alpha`` uniform on [10, 500].
    """
    rng = np.random.default_rng([seed, 31])
    drawn = []
    for number in range(count):
        init, rate = (10 ** rng.uniform(*bounds) for bounds in ((-6, -1), (-5, 0)))
        least, alpha = rng.uniform(0.01, 0.5), rng.uniform(10, 500)
        drawn.append(
            replace(
                base,
                init_scale=float(init),
                lr_x=float(rate),
                lambda_min=None if base.lambda_min is None else float(least),
                alpha=None if base.alpha is None else float(alpha),
                seed=base.seed + number,
            )
        )
    return drawn


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
    several = _checked_settings(settings)
    shape = tuple(int(size) for size in sample_shape)
    outputs = _outputs_of(network, shape)
    labels = _checked_labels(labels, m, outputs, len(several))
    attack = _Attack(network, several, labels, outputs)
    state = attack.start(shape) if state is None else state
    first = several[0]
    while state.iteration < first.iterations:
        state.iteration += 1
        noted = state.iteration % log_every == 0 or state.iteration in (1, first.iterations)
        attack.step(state, noted)
        if noted and on_log is not None:
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
    return Reconstruction(runs, tuple(network.targets))


class _Attack:
    """The steps of S settings against one network."""

    def __init__(
        self, network: KktNetwork, settings: Sequence[ReconstructSettings], labels: Tensor, outputs: int
    ) -> None:
        self.network, self.settings, self.first = network, settings, settings[0]
        self.like: dict[str, Any] = {"dtype": network.dtype, "device": network.device}
        self.m = m = labels.shape[1]
        sign = torch.ones(labels.shape) if outputs > 1 else labels.double()
        scale = 1 / m if self.first.scale == "mean" else 1.0
        self.signed_scale = (sign * scale).to(**self.like)
        self.classes = labels.to(network.device) if outputs > 1 else None
        self.alpha = self._column("alpha", torch.float64, "cpu") if self.first.alpha is not None else None
        self.lr_x, self.lr_lambda, self.low, self.high = (
            self._column(name, network.dtype, network.device) for name in ("lr_x", "lr_lambda", "low", "high")
        )
        self.lambda_min = (
            None
            if self.first.lambda_min is None
            else self._column("lambda_min", network.dtype, network.device).unsqueeze(1)
        )
        self.lr_lambda = self.lr_lambda.unsqueeze(1)

    def start(self, shape: tuple[int, ...]) -> State:
        x, multipliers = [], []
        for one in self.settings:
            generator = torch.Generator().manual_seed(one.seed)
            # In float64, so that every precision starts at the same place.
            x.append(torch.randn(self.m, *shape, generator=generator, dtype=torch.float64) * one.init_scale)
            draw = torch.randn if one.lambda_min is None else torch.rand
            multipliers.append(draw(self.m, generator=generator, dtype=torch.float64))
        start = torch.stack(x).to(**self.like)
        count = len(self.settings)
        moments = {"x": torch.zeros_like(start), "lambda": start.new_zeros(count, self.m)}
        if self.first.optimizer == "adam":
            moments |= {f"{name}_sq": torch.zeros_like(moment) for name, moment in moments.items()}
        return State(
            iteration=0,
            x=start,
            multipliers=torch.stack(multipliers).to(**self.like),
            moments=moments,
            last_loss=torch.full((count,), math.inf, dtype=torch.float64),
            factor=torch.ones(count, dtype=torch.float64),
            diverged=torch.zeros(count, dtype=torch.int64),
            safe_x=start.clone(),
        )

    def step(self, state: State, noted: bool) -> None:
        """One step of all settings; the residuals before it are noted."""
        x, multipliers = state.x, state.multipliers
        found = kkt_residual(
            self.network,
            x,
            multipliers * self.signed_scale,
            labels=self.classes,
            alpha=self.alpha,
            # The Gram form of the loss cancels near zero, its gradients do not.
            precision=self.first.precision,
        )
        residual = found.loss.cpu()
        alive = torch.isfinite(residual)
        if noted:
            state.steps.append(state.iteration - 1)
            state.residuals.append(torch.stack(list(found.per_parameter.values()), dim=-1).cpu())
            state.safe_x = torch.where(self._shaped(alive, x), x, state.safe_x)
        state.diverged[~alive & (state.diverged == 0)] = state.iteration
        low, high = (self._over(bound, x) for bound in (self.low, self.high))
        # relu(x - high) - relu(low - x) is x less its nearest point in the box.
        outside = x - torch.minimum(torch.maximum(x, low), high)
        grad_x = found.grad_inputs.add_(outside, alpha=2.0)
        grad_lambda = found.grad_coefficients * self.signed_scale
        if self.lambda_min is not None:
            below = (self.lambda_min - multipliers).clamp_(min=0)
            grad_lambda.sub_(below, alpha=2 * _MULTIPLIER_PRIOR)
        if self.first.step == "adaptive":
            self._adapt(state, residual, next(iter(found.per_parameter.values())).cpu())
        elif self.first.step == "cosine":
            state.factor.fill_(0.5 * (1 + math.cos(math.pi * (state.iteration - 1) / self.first.iterations)))
        factor = state.factor.to(**self.like)
        self._move(state, "x", x, grad_x, self._over(self.lr_x * factor, x))
        self._move(state, "lambda", multipliers, grad_lambda, self.lr_lambda * factor.unsqueeze(1))
        dead = state.diverged > 0
        if bool(dead.any()):  # frozen, so that no NaN is carried on
            state.x = torch.where(self._shaped(dead, x), state.safe_x, x)
            state.multipliers[dead.to(x.device)] = 0
            for moment in state.moments.values():
                moment[dead.to(x.device)] = 0

    def _adapt(self, state: State, loss: Tensor, first: Tensor) -> None:
        worse = loss > state.last_loss + _WORSE * first
        state.factor = torch.where(worse, state.factor * _SHRINK, (state.factor * _GROW).clamp(max=_LARGEST_FACTOR))
        if bool(worse.any()):
            for moment in state.moments.values():
                moment[worse.to(moment.device)] = 0
        state.last_loss = torch.where(worse, loss, torch.minimum(loss, state.last_loss))

    def _move(self, state: State, name: str, value: Tensor, gradient: Tensor, rate: Tensor) -> None:
        moment = state.moments[name]
        if self.first.optimizer == "sgd":
            moment.mul_(self.first.momentum).add_(gradient)
            value.sub_(moment * rate)
            return
        square = state.moments[f"{name}_sq"]
        moment.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        bias, bias_sq = 1 - 0.9**state.iteration, 1 - 0.999**state.iteration
        value.sub_(rate * (moment / bias) / ((square / bias_sq).sqrt_().add_(1e-8)))

    def _column(self, name: str, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        return torch.tensor([getattr(one, name) for one in self.settings], dtype=dtype, device=device)

    @staticmethod
    def _over(values: Tensor, x: Tensor) -> Tensor:
        return values.view(-1, *([1] * (x.ndim - 1)))

    @staticmethod
    def _shaped(mask: Tensor, x: Tensor) -> Tensor:
        return mask.to(x.device).view(-1, *([1] * (x.ndim - 1)))


def _checked_settings(
    settings: ReconstructSettings | Sequence[ReconstructSettings] | None,
) -> list[ReconstructSettings]:
    several = [settings or ReconstructSettings()] if not isinstance(settings, Sequence) else list(settings)
    if not several:
        raise InputError("settings", "an empty list", "give at least one")
    for name in ("iterations", "optimizer", "step", "scale", "precision", "momentum"):
        if len({getattr(one, name) for one in several}) > 1:
            raise InputError("settings", f"differ in {name}", "run them in calls of their own")
    for name in ("alpha", "lambda_min"):
        if len({getattr(one, name) is None for one in several}) > 1:
            raise InputError("settings", f"some have {name} and some have none", "run them in calls of their own")
    return several


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
