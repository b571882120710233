"""Rewinding: the weights that carry most of the members' risk go back to where they were before training.

Fang and Kim 2026 (arXiv:2603.13186), "critical weights rewinding and fine-tuning" (CWRF). With B the top ``fraction`` of
the weights by score, w the trained and w0 the initial weights:

=============== ===================================== ==================== ======
variant         start                                 then trained         paper
=============== ===================================== ==================== ======
rewind_freeze   w0 on B, w elsewhere                  all but B            A3, the method
rewind_tune     w0 on B, w elsewhere                  B alone              A2
zero_tune       0 on B, w elsewhere                   all but B            A1
rewind_only     w0 on B, w elsewhere                  nothing              control
tune            w                                     everything           control, at equal compute
=============== ===================================== ==================== ======
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastmem.defenses.importance import Records, ScoreKind, Scoring, weight_scores
from fastmem.defenses.losses import CrossEntropy, Loss
from fastmem.defenses.private import Privacy, fine_tune_privately
from fastmem.defenses.tuning import BatchNormRule, fine_tune, recalibrate, require_recipe
from fastmem.errors import InputError, UnknownNameError
from fastmem.ops.top_fraction import TopFraction, top_fraction
from fastmem.training import Recipe

__all__ = ["VARIANTS", "Rewound", "Variant", "reset_weights", "rewind"]

Variant = Literal["rewind_freeze", "rewind_tune", "zero_tune", "rewind_only", "tune"]
VARIANTS: tuple[str, ...] = get_args(Variant)

_TUNING = Recipe(epochs=20)


@dataclass(frozen=True, eq=False)
class Rewound:
    """A repaired network and what was done to it.

    Attributes:
        state: Parameters and buffers by name, on the CPU.
        selection: The critical weights; None for variant ``tune``.
        scores: What they were chosen by; None where nothing was.
        frozen: How many weights were held fixed while the others were trained, and were found unchanged to the last bit.
        history: Mean training loss of each epoch.
        epsilon: What the training spent, where it was by DP-SGD.
    """

    state: dict[str, Tensor]
    selection: TopFraction | None
    scores: dict[str, Tensor] | None
    frozen: int
    history: list[float]
    epsilon: float | None


def rewind(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    members: Records,
    reference: Records | None = None,
    *,
    fraction: float = 0.01,
    score: ScoreKind = "pve",
    variant: Variant = "rewind_freeze",
    loss: Loss | None = None,
    tuning: Recipe | None = None,
    scoring: Scoring | None = None,
    scores: Mapping[str, Tensor] | None = None,
    scope: Literal["global", "layer"] = "global",
    norms: bool = False,
    biases: bool = False,
    batch_norm: BatchNormRule = "update",
    privacy: Privacy | None = None,
    seed: int = 0,
) -> Rewound:
    """Rewinds the most critical weights of a network and trains the rest on; the network itself is left as it was.

    A lower training or test loss afterwards is no evidence of privacy: attack models that all went through this
    (``fastmem rewind`` does).

    Args:
        model: The trained network.
        initial: Its state before training. A new initialisation is another network's: say so where you use one.
        members: Records that it was trained on.
        reference: Records that it was not trained on, for scores that need them.
        fraction: Share of the eligible weights to rewind, above 0 and below 1; 0.001 to 0.05 as published. Exactly
            ``max(1, floor(fraction n))`` are.
        score: What ranks the weights (:mod:`fastmem.defenses.importance`).
        variant: What is done, see the table above.
        loss: What fine-tuning minimises; by default cross-entropy.
        tuning: How, by default 20 epochs of SGD under a cosine schedule.
        scoring: How scores add up.
        scores: Scores that are there already, instead of ``score``.
        scope: Rank all weights together (``"global"``), or each tensor's by themselves (``"layer"``).
        norms: Whether scales and shifts of normalisation layers may be rewound.
        biases: Whether biases may.
        batch_norm: What becomes of running statistics, see :func:`fastmem.defenses.tuning.fine_tune`. They are not
            rewound: under rewound weights they are stale until training, or ``recalibrate``, renews them.
        privacy: Train by DP-SGD.
        seed: Of scores, order, augmentation, dropout and noise.

    Returns:
        A :class:`Rewound`.

    Raises:
        UnknownNameError: There is no such score, variant, scope or rule.
        InputError: The fraction is out of range, ``initial`` does not fit, or something that is needed is missing.
        RuntimeError: A frozen weight changed, which cannot be.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("variant", str(variant), VARIANTS)
    if variant != "tune" and (isinstance(fraction, bool) or not 0 < fraction < 1):
        raise InputError("fraction", f"{fraction!r}", "give a number above 0 and below 1")
    tuning = tuning or _TUNING
    require_recipe(tuning, batch_norm)
    _check_initial(model, initial)
    working = copy.deepcopy(model)
    selection, found = None, None
    frozen: dict[str, Tensor] = {}
    if variant != "tune":
        found = dict(scores) if scores is not None else None
        if found is None:
            found = weight_scores(
                model,
                members,
                reference,
                initial=initial,
                kind=score,
                scoring=scoring,
                norms=norms,
                biases=biases,
                seed=seed,
            )
        selection = top_fraction(found, fraction, scope)
        masks = {name: mask.unpack() for name, mask in selection.masks.items()}
        reset_weights(working, None if variant == "zero_tune" else initial, masks)
        frozen = _complement(working, masks) if variant == "rewind_tune" else masks
    history: list[float] = []
    epsilon = None
    if variant == "rewind_only":
        if batch_norm == "recalibrate":
            recalibrate(working, members)
    elif privacy is not None:
        history, epsilon = fine_tune_privately(working, members, tuning, loss or CrossEntropy(), privacy, frozen, seed)
    else:
        history = fine_tune(working, members, tuning, loss or CrossEntropy(), frozen, batch_norm, seed)
    state = {name: value.detach().cpu().clone() for name, value in working.state_dict().items()}
    return Rewound(state, selection, found, sum(int(mask.sum()) for mask in frozen.values()), history, epsilon)


@torch.no_grad()
def reset_weights(model: nn.Module, initial: Mapping[str, Tensor] | None, masks: Mapping[str, Tensor]) -> None:
    """Sets the masked weights to their initial values, or to 0; all others keep every bit.

    Args:
        model: Changed in place.
        initial: Values by name; None for 0.
        masks: bool of the parameter's shape, by name.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name]
        value = torch.zeros_like(weight) if initial is None else initial[name].to(weight)
        weight.copy_(torch.where(mask.to(weight.device), value, weight))


def _complement(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything but the masked weights, what may not be ranked included."""
    return {
        name: ~masks[name].to(value.device) if name in masks else torch.ones_like(value, dtype=torch.bool)
        for name, value in model.named_parameters()
    }


def _check_initial(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    equal = True
    for name, value in model.named_parameters():
        if name not in initial or initial[name].shape != value.shape:
            given = "is missing" if name not in initial else f"has shape {list(initial[name].shape)}"
            raise InputError("initial", f"{name} {given}, the network's is {list(value.shape)}", "give its first state")
        equal = equal and torch.equal(initial[name].to(value), value)
    if equal:
        warnings.warn("initial equals the trained weights: rewinding changes nothing", stacklevel=3)
