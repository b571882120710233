"""The settings of training-data reconstruction: what they mean, what the papers publish, and how a sweep draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError

__all__ = ["PUBLISHED", "ReconstructSettings", "balanced_labels", "checked_settings", "random_settings"]

OPTIMISERS = ("sgd", "adam")
STEPS = ("constant", "adaptive", "cosine")
SCALES = ("mean", "sum")


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


def checked_settings(
    settings: ReconstructSettings | Sequence[ReconstructSettings] | None,
) -> list[ReconstructSettings]:
    """Settings as a list.

    Raises:
        InputError: There are none, or they cannot advance together.
    """
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
