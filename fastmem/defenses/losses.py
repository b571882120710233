"""Training losses that leave less to tell members by: RelaxLoss, label smoothing, and those in the style of HAMP and CCL.

Each maps logits and labels to one number, which depends on the epoch for RelaxLoss alone. Natural logarithms; means over
the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError

__all__ = ["LOSSES", "ConvexConcave", "CrossEntropy", "Hamp", "LabelSmoothing", "Loss", "RelaxLoss", "make_loss"]


class Loss(Protocol):
    """A training loss: ``loss(logits [B, C], labels [B], epoch from 0)`` gives a scalar with a gradient."""

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        ...


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """``mean(-log p_y)``."""

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class LabelSmoothing(Loss):
    """``mean((1 - s) (-log p_y) + s mean_k(-log p_k))`` (Szegedy et al. 2016).

    Args:
        smoothing: s, from 0 to below 1.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        _require(self, "smoothing", 0.0, 1.0)

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


@dataclass(frozen=True)
class RelaxLoss(Loss):
    """Keeps the training loss near ``alpha`` instead of 0 (Chen, Yu and Fritz 2022, arXiv:2207.05801).

    In even epochs ``|CE - alpha|``: below alpha the weights climb. In odd ones CE where it is above alpha; else each
    record's ``(1 - right) CE(soft) - CE``, whose soft target holds the record's own ``p_y`` and shares the rest evenly
    among the other classes. The soft target is a constant to the gradient.

    Args:
        alpha: The training loss to keep, in nats, above 0.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        _require(self, "alpha", 0.0, math.inf, open_end=True)

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        log_p = F.log_softmax(logits, dim=1)
        own = -log_p.gather(1, labels[:, None])[:, 0]
        mean = own.mean()
        if epoch % 2 == 0:
            return (mean - self.alpha).abs()
        # The one wait for a GPU in a step; computing both branches everywhere would cost more than it.
        if float(mean.detach()) > self.alpha:
            return mean
        sure = (-own.detach()).exp()
        others = logits.shape[1] - 1
        soft = ((1 - sure) / others)[:, None].expand_as(log_p).scatter(1, labels[:, None], sure[:, None])
        flat = -(soft * log_p).sum(dim=1)
        wrong = (logits.detach().argmax(dim=1) != labels).to(log_p.dtype)
        return (wrong * flat - own).mean()


@dataclass(frozen=True)
class Hamp(Loss):
    """High-entropy targets and a bonus for entropy, the training half of HAMP (Chen and Pattabiraman 2024).

    ``mean(KL(t || p)) - bonus mean(H(p))``: the target t has the largest ``t_y`` whose entropy is at least ``entropy``
    of the uniform distribution's, and shares the rest evenly. HAMP's second half, which replaces the outputs of the
    finished model, is not part of it.

    Args:
        entropy: Share of ``log C``, from 0 to below 1.
        bonus: Factor of the outputs' entropy, from 0.
    """

    entropy: float = 0.5
    bonus: float = 0.01

    def __post_init__(self) -> None:
        _require(self, "entropy", 0.0, 1.0)
        _require(self, "bonus", 0.0, math.inf)

    def peak(self, num_classes: int) -> float:
        """The target's probability of the label."""
        wanted = self.entropy * math.log(num_classes)

        def beyond(p: float) -> float:
            rest = (1 - p) / (num_classes - 1)
            return -sum(share * math.log(share) for share in (p, *[rest] * (num_classes - 1)) if share > 0) - wanted

        return 1.0 if wanted == 0 else cast(float, brentq(beyond, 1 / num_classes, 1.0))

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        classes = logits.shape[1]
        peak = self.peak(classes)
        target = torch.full_like(logits, (1 - peak) / (classes - 1)).scatter(1, labels[:, None], peak)
        log_p = F.log_softmax(logits, dim=1)
        entropy = -(log_p.exp() * log_p).sum(dim=1)
        return F.kl_div(log_p, target, reduction="batchmean") - self.bonus * entropy.mean()


@dataclass(frozen=True)
class ConvexConcave(Loss):
    """A convex and a concave term in ``p_y``, in the style of CCL (Liu et al. 2024, arXiv:2402.05453).

    ``mean(share (-log p_y) + (1 - share) (e - exp(p_y)))``: a convex loss pulls hardest at the records known least, which
    draws the members' losses together near 0; the concave term pulls hardest at those known best, and leaves them spread.
    The published family has more members; this is one of them.

    Args:
        share: Of the convex term, above 0 and at most 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError("share", f"{self.share}", "give a number above 0 and at most 1")

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of a batch."""
        log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
        return (-self.share * log_p + (1 - self.share) * (math.e - log_p.exp().exp())).mean()


#: By the name that options give them.
LOSSES: dict[str, type[Loss]] = {
    "ce": CrossEntropy,
    "relaxloss": RelaxLoss,
    "label_smoothing": LabelSmoothing,
    "hamp": Hamp,
    "ccl": ConvexConcave,
}


def make_loss(name: str, **options: Any) -> Loss:
    """A loss by name.

    Args:
        name: ``ce``, ``relaxloss``, ``label_smoothing``, ``hamp`` or ``ccl``.
        options: Its own.

    Raises:
        UnknownNameError: There is no such loss.
        InputError: It has no such option, or its value is out of range.
    """
    if name not in LOSSES:
        raise UnknownNameError("loss", str(name), LOSSES)
    kind: Any = LOSSES[name]
    accepted = [field.name for field in fields(kind)]
    for option in options:
        if option not in accepted:
            raise InputError(option, f"no option of loss {name}", f"its options: {', '.join(accepted) or 'none'}")
    return kind(**options)


def _require(loss: Any, name: str, lowest: float, beyond: float, open_end: bool = False) -> None:
    value = getattr(loss, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value < beyond:
        raise InputError(
            name, f"{value!r}", f"give a number from {lowest:g}" + (f" to below {beyond:g}" * (beyond < math.inf))
        )
    if open_end and value == lowest:
        raise InputError(name, f"{value!r}", f"give a number above {lowest:g}")
