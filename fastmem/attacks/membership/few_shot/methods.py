"""The few-shot learners by name, and what each of them must be given of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastmem.attacks.membership.few_shot.batch import Learner
from fastmem.attacks.membership.few_shot.finetune import FineTune, FineTuneHead
from fastmem.attacks.membership.few_shot.fit import IMAGES, Schedule
from fastmem.attacks.membership.few_shot.laplacian import LaplacianShot
from fastmem.attacks.membership.few_shot.simpleshot import SimpleShot
from fastmem.attacks.membership.few_shot.tim import TIM
from fastmem.attacks.membership.few_shot.transform import Transform
from fastmem.errors import InputError, UnknownNameError

__all__ = ["METHODS", "Method", "access", "make_learner"]


@dataclass(frozen=True)
class Method:
    """What is said about a learner.

    Args:
        title: For human readers.
        transductive: Whether a record's score depends on the other records asked about.
        white_box: Whether it needs the network's weights, whatever the features.
        normalise: Whether features are centred and scaled to unit length by default.
    """

    title: str
    transductive: bool
    white_box: bool = False
    normalise: bool = False


METHODS: dict[str, Method] = {
    "simpleshot": Method("SimpleShot", transductive=False, normalise=True),
    "laplacian": Method("LaplacianShot", transductive=True),
    "tim": Method("TIM", transductive=True, normalise=True),
    "finetune_head": Method("Fine-tuned head", transductive=True),
    "finetune": Method("Fine-tuning", transductive=True, white_box=True),
}


def access(method: str, answers_only: bool) -> str:
    """What an attacker needs: ``"black box"`` (the model's answers) or ``"white box"`` (activations or weights).

    Args:
        method: A name of ``METHODS``.
        answers_only: Whether features are made of the model's answers alone, such as its logits.
    """
    if METHODS[method].white_box:
        return "white box (trains a copy of the weights)"
    return "black box (answers)" if answers_only else "white box (reads activations)"


def make_learner(
    method: str,
    *,
    prior: float = 0.5,
    centre: Any = "support",
    normalise: bool | None = None,
    model: nn.Module | None = None,
    schedule: Schedule = IMAGES,
) -> Learner:
    """A learner by name.

    Args:
        method: A name of ``METHODS``.
        prior: Share of members among the records asked about (TIM).
        centre: Mean that is taken off: ``"support"``, an array [d] known from public data, or None.
        normalise: Centre features and scale them to unit length; by default as the method was published.
        model: The network, for ``finetune``; its outputs are the features.
        schedule: How long ``finetune`` trains, and its temperatures.

    Raises:
        InputError: If the method does not exist, or ``finetune`` gets no network.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    transform = Transform(centre, METHODS[method].normalise if normalise is None else normalise)
    if method == "simpleshot":
        return SimpleShot(transform)
    if method == "laplacian":
        return LaplacianShot(transform)
    if method == "tim":
        return TIM(transform, prior)
    if method == "finetune_head":
        return FineTuneHead()
    if not isinstance(model, nn.Module):
        raise InputError(
            "model", f"a {type(model).__name__} for finetune", "give the target as model=, or take finetune_head"
        )
    return FineTune(model, schedule)
