"""A training recipe: everything that decides how a model is trained, but its data and its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from fastmem.errors import InputError, UnknownNameError

__all__ = ["Recipe"]

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Augment = Literal["none", "flip", "crop", "flip+crop"]
MixedPrecision = Literal["none", "bf16", "fp16"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    An epoch is one pass over the model's own records in a random order, in ceil(n / batch_size) batches of equal size
    (to within one record): no batch is left that is too small for batch normalisation.

    Args:
        optimizer: sgd, adam or adamw (weight decay apart from the gradient).
        learning_rate: Its largest value; by default 0.05 for sgd, 0.001 for adam and adamw.
        momentum: Of sgd; 0 switches it off.
        nesterov: Nesterov's form of the momentum (sgd).
        weight_decay: Factor of the weights added to the gradient (sgd, adam), or taken off the weights (adamw).
        schedule: How the learning rate goes on after the warm-up: constant, cosine (down to 0 at the last step) or step
            (times step_factor at each milestone).
        milestones: Epochs at which schedule "step" lowers the learning rate.
        step_factor: What schedule "step" multiplies the learning rate by.
        warmup_epochs: Epochs, or a part of one, in which the learning rate rises linearly.
        epochs: Passes over the model's records.
        batch_size: Records a step, at most.
        label_smoothing: Share of the target spread evenly over all classes.
        augment: What training does to images at random: none, flip (mirror), crop (move by up to an eighth), flip+crop.
        stop_at_train_accuracy: Stop after the first epoch with this accuracy on the model's own records (0 to 1).
        patience: Stop after this many epochs without a lower loss on held-out records, and go back to the best weights.
        mixed_precision: none, bf16 or fp16 (with loss scaling); on GPUs only.
        clip_norm: Scale gradients down to this Euclidean norm when they exceed it.

    Raises:
        InputError: If a value is out of range, or options contradict each other.
    """

    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    milestones: tuple[int, ...] = ()
    step_factor: float = 0.1
    warmup_epochs: float = 0.0
    epochs: int = 50
    batch_size: int = 64
    label_smoothing: float = 0.0
    augment: Augment = "none"
    stop_at_train_accuracy: float | None = None
    patience: int | None = None
    mixed_precision: MixedPrecision = "none"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list, where it comes from YAML
        for name, choices in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("augment", Augment),
            ("mixed_precision", MixedPrecision),
        ):
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError(name, str(getattr(self, name)), get_args(choices))
        self._check_ranges()
        self._check_combinations()

    @property
    def peak_rate(self) -> float:
        """The largest learning rate: the one given, or the optimizer's default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.05 if self.optimizer == "sgd" else 0.001

    def rates(self, steps_per_epoch: int) -> list[float]:
        """The learning rate of every step of a training without early stopping."""
        total = self.epochs * steps_per_epoch
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total)
        return [
            self.peak_rate * min(1.0, (step + 1) / (warmup + 1)) * self._decay(step, steps_per_epoch, warmup, total)
            for step in range(total)
        ]

    def _decay(self, step: int, steps_per_epoch: int, warmup: int, total: int) -> float:
        if self.schedule == "cosine":
            # Below zero during the warm-up, where the cosine stays at 1.
            progress = max(step - warmup, 0) / max(total - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            return self.step_factor ** sum(step // steps_per_epoch >= epoch for epoch in self.milestones)
        return 1.0

    def _check_ranges(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(field.name, f"{value}", "give a finite number")
        for name, lowest, beyond in (
            ("learning_rate", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("step_factor", 0.0, math.inf),
            ("warmup_epochs", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if value is not None and not lowest <= value < beyond:
                accepted = f"from {lowest:g} to below {beyond:g}" if beyond < math.inf else f"of at least {lowest:g}"
                raise InputError(name, f"{value}", f"give a number {accepted}")
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, f"{value}", "give at least 1")
        if self.stop_at_train_accuracy is not None and not 0 < self.stop_at_train_accuracy <= 1:
            raise InputError("stop_at_train_accuracy", f"{self.stop_at_train_accuracy}", "give a share, above 0 to 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError("clip_norm", f"{self.clip_norm}", "give a number above 0, or leave it out")

    def _check_combinations(self) -> None:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise InputError("nesterov", "true without a momentum", "it needs optimizer sgd and a momentum above 0")
        if (self.schedule == "step") != bool(self.milestones):
            raise InputError(
                "milestones",
                f"{list(self.milestones)} with schedule {self.schedule!r}",
                "schedule step needs the epochs at which to lower the learning rate, the others take none",
            )
        if any(not 0 < epoch < self.epochs for epoch in self.milestones):
            raise InputError("milestones", f"{list(self.milestones)}", f"give epochs from 1 to {self.epochs - 1}")
        if self.warmup_epochs > self.epochs:
            raise InputError("warmup_epochs", f"{self.warmup_epochs}", f"there are {self.epochs} epochs")
