"""The steps of a reconstruction attack: S settings advance against one network, in place, without waiting for the device.

Every decision - whether a setting diverged, whether its last step made things worse - is a number on the device that the
next operation multiplies or selects by. So a step is a fixed list of operations on fixed memory: it can be recorded once and
replayed (:mod:`fastmem.attacks.reconstruct_graph`), and the host only looks where residuals are noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastmem.attacks.reconstruct_settings import ReconstructSettings
from fastmem.ops._registry import select
from fastmem.ops.boxed_step import ADAM, BoxedStep
from fastmem.ops.kkt_residual import KktNetwork, forward_arguments

__all__ = ["State", "Steps"]

_MULTIPLIER_PRIOR = 5.0
# The adaptive step. Layers that keep their initial weights leave a residual that never moves (Haim et al.: about 333), so
# a rise is measured against the residual of the first parameter alone.
_GROW, _SHRINK, _WORSE = 1.02, 0.5, 0.2
_LARGEST_FACTOR = 16.0


@dataclass(eq=False)
class State:
    """Where an attack stands: all that it needs to go on, as tensors for a file.

    Args:
        iteration: Steps taken.
        x: Candidates [S, m, *sample].
        multipliers: Lambda [S, m].
        moments: Of both, by name.
        last_loss: What the adaptive step compares with, float64 [S].
        factor: Of the step sizes, float64 [S].
        diverged: The iteration after which nothing was finite, int64 [S]; 0 if all was.
        safe_x: The last candidates that were noted with a finite residual, as ``x``.
        steps: Iterations at which the residuals were noted.
        residuals: Those, each float64 [S, parameters] on the CPU.
    """

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
        """A copy on a device of what :meth:`tensors` gave."""
        moments = {
            name.removeprefix("moment."): value.to(device, copy=True)
            for name, value in tensors.items()
            if name.startswith("moment.")
        }
        return cls(
            iteration=int(tensors["iteration"]),
            moments=moments,
            steps=tensors["steps"].tolist(),
            residuals=list(tensors["residuals"]),
            **{name: tensors[name].to(device, copy=True) for name in cls._PLAIN},
        )

    @classmethod
    def begin(
        cls, settings: Sequence[ReconstructSettings], m: int, shape: tuple[int, ...], network: KktNetwork
    ) -> State:
        """Before the first step."""
        x, multipliers = [], []
        for one in settings:
            generator = torch.Generator().manual_seed(one.seed)
            # In float64, so that every precision starts at the same place.
            x.append(torch.randn(m, *shape, generator=generator, dtype=torch.float64) * one.init_scale)
            draw = torch.randn if one.lambda_min is None else torch.rand
            multipliers.append(draw(m, generator=generator, dtype=torch.float64))
        start = torch.stack(x).to(network.device, network.dtype)
        count = len(settings)
        moments = {"x": torch.zeros_like(start), "lambda": start.new_zeros(count, m)}
        if settings[0].optimizer == "adam":
            moments |= {f"{name}_sq": torch.zeros_like(moment) for name, moment in moments.items()}
        return cls(
            iteration=0,
            x=start,
            multipliers=torch.stack(multipliers).to(network.device, network.dtype),
            moments=moments,
            last_loss=start.new_full((count,), math.inf, dtype=torch.float64),
            factor=start.new_ones(count, dtype=torch.float64),
            diverged=start.new_zeros(count, dtype=torch.int64),
            safe_x=start.clone(),
        )

    def note(self, losses: Tensor, before: Tensor) -> None:
        """Notes the residuals of the last step, [S, parameters], and the candidates that they are of where they are finite."""
        self.steps.append(self.iteration - 1)
        self.residuals.append(losses.to("cpu", copy=True))
        sound = losses.sum(-1).isfinite().view(-1, *([1] * (before.ndim - 1)))
        self.safe_x.copy_(torch.where(sound, before, self.safe_x))


class Steps:
    """The step of some settings from a state on.

    Args:
        network: Under attack.
        settings: S of them, which can run together.
        labels: Of the candidates [S, m].
        outputs: Of the network.
        state: Where they stand; its tensors are what the steps change.

    Attributes:
        losses: Squared residual of each parameter before the last step, float64 [S, parameters].
    """

    def __init__(
        self,
        network: KktNetwork,
        settings: Sequence[ReconstructSettings],
        labels: Tensor,
        outputs: int,
        state: State,
    ) -> None:
        self.first, self.state = settings[0], state
        like: dict[str, Any] = {"dtype": network.dtype, "device": network.device}
        sign = torch.ones(labels.shape) if outputs > 1 else labels.double()
        scale = 1 / labels.shape[1] if self.first.scale == "mean" else 1.0
        self._signed_scale = (sign * scale).to(**like)
        self._coefficients = torch.empty_like(state.multipliers)
        # The Gram form of the loss cancels near zero, its gradients do not.
        (self._problem,) = forward_arguments(
            network,
            state.x,
            self._coefficients,
            labels=labels.to(network.device) if outputs > 1 else None,
            alpha=None
            if self.first.alpha is None
            else torch.tensor([one.alpha for one in settings], dtype=torch.float64),
            precision=self.first.precision,
        )
        self._solve = select("kkt_residual", self._problem).forward

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, **like)

        free = self.first.lambda_min is None
        self._rates = {
            "x": column([one.lr_x for one in settings]),
            "lambda": column([one.lr_lambda for one in settings]),
        }
        self._boxes = {
            "x": (column([one.low for one in settings]), column([one.high for one in settings]), 1.0),
            "lambda": (
                column([-math.inf if free else float(one.lambda_min or 0) for one in settings]),
                column([math.inf for _ in settings]),
                _MULTIPLIER_PRIOR,
            ),
        }
        self._always = column([1.0 for _ in settings])
        self._count = torch.tensor(float(state.iteration), dtype=torch.float64, device=network.device)
        self.losses = torch.zeros(len(settings), len(network.targets), dtype=torch.float64, device=network.device)

    @torch.no_grad()
    def __call__(self) -> None:
        """One step of all settings."""
        state = self.state
        torch.mul(state.multipliers, self._signed_scale, out=self._coefficients)
        solved = self._solve(self._problem)
        self.losses.copy_(solved.losses)
        self._count.add_(1)
        loss = self.losses.sum(-1)
        dies = ~loss.isfinite() & (state.diverged == 0)
        state.diverged.copy_(torch.where(dies, self._count.long(), state.diverged))
        dead = state.diverged > 0
        keep = self._pace(loss)
        factor = state.factor.masked_fill(dead, 0)
        self._move("x", state.x, solved.grad_x, factor, keep)
        self._move("lambda", state.multipliers, solved.grad_c * self._signed_scale, factor, keep)
        # Frozen, so that no NaN is carried on.
        state.x.copy_(torch.where(dead.view(-1, *([1] * (state.x.ndim - 1))), state.safe_x, state.x))
        state.multipliers.masked_fill_(dead.unsqueeze(1), 0)

    def _pace(self, loss: Tensor) -> Tensor:
        """Sets what the step sizes are multiplied by; returns 0 for settings that should forget their moments, else 1."""
        state = self.state
        if self.first.step == "cosine":
            angle = (self._count - 1) * (math.pi / self.first.iterations)
            state.factor.copy_((0.5 * (1 + angle.cos())).expand_as(state.factor))
        if self.first.step != "adaptive":
            return self._always
        worse = loss > state.last_loss + _WORSE * self.losses[:, 0]
        grown = (state.factor * _GROW).clamp_(max=_LARGEST_FACTOR)
        state.factor.copy_(torch.where(worse, state.factor * _SHRINK, grown))
        state.last_loss.copy_(torch.where(worse, loss, torch.minimum(loss, state.last_loss)))
        return (~worse).to(self._always.dtype)

    def _move(self, name: str, value: Tensor, gradient: Tensor, factor: Tensor, keep: Tensor) -> None:
        low, high, weight = self._boxes[name]
        rate, spread = self._rates[name] * factor.to(value.dtype), None
        if self.first.optimizer == "adam":
            mean, mean_sq = (-torch.expm1(self._count * math.log(decay)) for decay in ADAM[:2])
            rate = (rate / mean).to(value.dtype)
            spread = mean_sq.rsqrt().to(value.dtype).expand_as(rate).contiguous()
        # (not by the public function, whose checks take as long as twenty candidates)
        step = BoxedStep(
            value,
            gradient.contiguous(),
            self.state.moments[name],
            self.state.moments.get(f"{name}_sq"),
            rate=rate,
            keep=keep,
            low=low,
            high=high,
            spread=spread,
            weight=weight,
            momentum=self.first.momentum,
        )
        select("boxed_step", step).forward(step)
