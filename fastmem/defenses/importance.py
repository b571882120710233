"""How much each weight of a trained network carries of its members, or of what it learned: the scores that rank weights.

======== ============================================================================== ===================
kind     score of weight w                                                              needs
======== ============================================================================== ===================
pve      ``sum_t |g_t w_t|``, g of ``(1 - mix) CE(members) + mix KL(reference)``        reference, initial
tfo      ``sum_t |g_t w_t|``, g of CE(members): learnability
kl_only  pve with mix = 1: it sees no member                                            reference, initial
grad     ``sum_t |g_t|`` of the pve loss: pve without its factor ``|w|``                reference, initial
past     ``|d(L_reference - L_members)/dw|``                                            reference, labelled
past_w   the same times ``|w|``                                                         reference, labelled
fisher   mean over members of the squared gradient of each one's loss
ssd      mean over batches of the squared gradient of the batch
salun    ``|sum over batches of dCE/dw|``
weight   ``|w|``
moved    ``|w - w0|``                                                                   initial
random   uniform, from the seed
======== ============================================================================== ===================

KL compares the network on reference records with what it said before it was trained. PVE, TFO: Fang and Kim 2026
(arXiv:2603.13186); PAST: Hu et al. 2024 (arXiv:2410.06814); SSD: Foster et al. 2024 (arXiv:2308.07707); SalUn: Fan et
al. 2024 (arXiv:2310.12508).

The first four follow the weights along ``steps`` SGD steps of a copy. The network is in eval mode throughout: dropout
is off and batch normalisation uses its running statistics, so a record's gradient does not depend on its neighbours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.data.transforms import normalise
from fastmem.defenses.eligible import eligible_weights
from fastmem.errors import InputError, UnknownNameError
from fastmem.ops import kl_div
from fastmem.ops.grad_stats import GradStats
from fastmem.ops.weight_importance import weight_importance
from fastmem.training import load_into

__all__ = ["SCORES", "Records", "ScoreKind", "Scoring", "weight_scores"]

ScoreKind = Literal[
    "pve", "tfo", "kl_only", "grad", "past", "past_w", "fisher", "ssd", "salun", "weight", "moved", "random"
]
#: Every kind of score, with what people call it.
SCORES: dict[str, str] = {
    "pve": "PVE (privacy vulnerability)",
    "tfo": "TFO (learnability)",
    "kl_only": "PVE without members (KL alone)",
    "grad": "PVE without |w|",
    "past": "PAST (gap of gradients)",
    "past_w": "PAST times |w|",
    "fisher": "Fisher",
    "ssd": "SSD (squared batch gradients)",
    "salun": "SalUn (saliency)",
    "weight": "|w|",
    "moved": "|w - w0|",
    "random": "Random",
}
assert set(SCORES) == set(get_args(ScoreKind))

_TRAJECTORY: dict[str, Literal["abs_gw", "abs_g"]] = {
    "pve": "abs_gw",
    "tfo": "abs_gw",
    "kl_only": "abs_gw",
    "grad": "abs_g",
}
_NEED_INITIAL = ("pve", "kl_only", "grad", "moved")
_NEED_REFERENCE = ("pve", "kl_only", "grad", "past", "past_w")


@dataclass(frozen=True, eq=False)
class Records:
    """Labelled records and how a network is shown them.

    Args:
        x: As stored [N, ...].
        y: int64 labels [N].
        normalisation: Mean and standard deviation (``Dataset.channel_stats``); None where x is what the network takes.
    """

    x: Tensor
    y: Tensor
    normalisation: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or self.y.ndim != 1 or self.y.dtype != torch.int64 or not len(self.y):
            raise InputError(
                "records",
                f"{len(self.x)} records with labels {str(self.y.dtype).removeprefix('torch.')} {list(self.y.shape)}",
                "give at least one record, and one int64 label each",
            )

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some records, on the device and in the dtype of ``like``."""
        rows = rows.to(self.x.device)
        x, y = self.x[rows].to(like.device), self.y[rows].to(like.device)
        if self.normalisation is not None:
            mean, std = self.normalisation
            x = normalise(x, mean.to(like.device), std.to(like.device))
        return x.to(like.dtype), y


@dataclass(frozen=True)
class Scoring:
    """How weights are scored.

    Args:
        mix: Share of the KL term in the PVE loss, 0 to 1.
        steps: Optimiser steps along which scores add up.
        batch_size: Records of each kind a step.
        learning_rate: Of the scoring copy's plain SGD, without momentum or weight decay.
        kl_direction: ``init_to_current``: KL(p_w0 || p_w), or ``current_to_init``: KL(p_w || p_w0).
    """

    mix: float = 0.5
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    kl_direction: Literal["init_to_current", "current_to_init"] = "init_to_current"

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise InputError("mix", f"{self.mix}", "give a share from 0 to 1")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(name, f"{getattr(self, name)}", "give at least 1")
        if not 0 <= self.learning_rate < math.inf:
            raise InputError("learning_rate", f"{self.learning_rate}", "give a number from 0")
        if self.kl_direction not in ("init_to_current", "current_to_init"):
            raise UnknownNameError("kl_direction", str(self.kl_direction), ("init_to_current", "current_to_init"))


def weight_scores(
    model: nn.Module,
    members: Records,
    reference: Records | None = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    kind: ScoreKind = "pve",
    scoring: Scoring | None = None,
    norms: bool = False,
    biases: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Scores of a network's weights, higher = more important; the network is left as it was.

    Args:
        model: The trained network, on any device.
        members: Records that it was trained on.
        reference: Records that it was not trained on, and that no attack is judged by.
        initial: Its state before training.
        kind: Which score, see the table above.
        scoring: How the scores add up.
        norms: Whether to rank scales and shifts of normalisation layers.
        biases: Whether to rank biases.
        seed: Of the order of records, and of ``random``.

    Returns:
        By parameter name, of the parameter's shape, not negative; float32, float64 for float64 weights.

    Raises:
        UnknownNameError: There is no such kind.
        InputError: What the kind needs is missing or does not fit, or a score is not finite.
    """
    if kind not in SCORES:
        raise UnknownNameError("kind", str(kind), SCORES)
    if kind in _NEED_INITIAL and initial is None:
        raise InputError(
            "initial", f"none for score {kind!r}, which compares with the network before training", "give its state"
        )
    if initial is not None and (
        wrong := next(
            (n for n, value in model.named_parameters() if n not in initial or initial[n].shape != value.shape), ""
        )
    ):
        raise InputError("initial", f"{wrong} is missing or of another shape", "give the state of this very network")
    if kind in _NEED_REFERENCE and reference is None:
        raise InputError("reference", f"none for score {kind!r}", "give records that the network was not trained on")
    names = list(eligible_weights(model, norms, biases))
    scoring = scoring or Scoring()
    working = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    if kind in _TRAJECTORY:
        scores = _along_steps(working, members, reference, initial, kind, scoring, names, generator)
    elif kind in ("past", "past_w"):
        assert reference is not None
        scores = _gap(working, members, reference, scoring, "abs_g" if kind == "past" else "abs_gw")
    elif kind in ("fisher", "ssd", "salun"):
        scores = _of_members(working, members, kind, scoring)
    else:
        scores = _of_weights(working, initial, kind, generator)
    scores = {name: scores[name] for name in names}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise InputError("model", f"scores of {name} are not finite", "lower the scoring learning rate")
    return scores


def _along_steps(
    model: nn.Module,
    members: Records,
    reference: Records | None,
    initial: Mapping[str, Tensor] | None,
    kind: str,
    scoring: Scoring,
    names: list[str],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    mix = {"tfo": 0.0, "kl_only": 1.0}.get(kind, scoring.mix)
    parameters = dict(model.named_parameters())
    like = next(iter(parameters.values()))
    # Of all reference records once: the untrained network does not change.
    before = None
    if mix > 0:
        assert reference is not None, "checked by weight_scores"
        assert initial is not None, "checked by weight_scores"
        before = _answers(model, initial, reference, like, scoring.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=scoring.learning_rate)
    # Two generators: the members' order is the same for every mix.
    streams = [torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator))) for _ in range(2)]
    own = _endless(len(members), scoring.batch_size, streams[0])
    others = _endless(len(reference), scoring.batch_size, streams[1]) if reference is not None else iter(())
    scores: dict[str, Tensor] | None = None
    for _ in range(scoring.steps):
        loss = like.new_zeros(())
        if mix < 1:
            x, y = members.batch(next(own), like)
            loss = loss + (1 - mix) * F.cross_entropy(model(x), y)
        if before is not None:
            assert reference is not None
            rows = next(others)
            x, _ = reference.batch(rows, like)
            untrained, now = before[rows.to(like.device)], model(x)
            pair = (untrained, now) if scoring.kl_direction == "init_to_current" else (now, untrained)
            loss = loss + mix * kl_div(*pair).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: parameters[name].grad for name in names}
        weights = {name: parameters[name] for name in names}
        scores = weight_importance(weights, gradients, _TRAJECTORY[kind], scores=scores)
        optimizer.step()
    assert scores is not None
    return scores


@torch.no_grad()
def _answers(model: nn.Module, state: Mapping[str, Tensor], records: Records, like: Tensor, batch_size: int) -> Tensor:
    """Logits [N, C] of the network with another state."""
    untrained = copy.deepcopy(model)
    load_into(untrained, state, "initial")
    rows = torch.arange(len(records)).split(4 * batch_size)
    return torch.cat([untrained(records.batch(part, like)[0]) for part in rows])


def _gap(
    model: nn.Module, members: Records, reference: Records, scoring: Scoring, kind: Literal["abs_g", "abs_gw"]
) -> dict[str, Tensor]:
    """The gradient of mean loss on reference records minus that on members; backward passes add it up."""
    like = next(model.parameters())
    for records, sign in ((reference, 1.0), (members, -1.0)):
        for rows in torch.arange(len(records)).split(4 * scoring.batch_size):
            x, y = records.batch(rows, like)
            (F.cross_entropy(model(x), y, reduction="sum") * (sign / len(records))).backward()
    return weight_importance(model, kind=kind)


def _of_members(model: nn.Module, members: Records, kind: str, scoring: Scoring) -> dict[str, Tensor]:
    like = next(model.parameters())
    batches = torch.arange(len(members)).split(scoring.batch_size)
    if kind == "fisher":
        found = GradStats(model, stats=("sum_sq",))
        for rows in batches:
            found.update(_losses, *members.batch(rows, like))
        return {name: value / len(members) for name, value in found.importance("sq_g").items()}
    scores: dict[str, Tensor] | None = None
    for rows in batches:
        x, y = members.batch(rows, like)
        F.cross_entropy(model(x), y).backward()
        if kind == "ssd":
            scores = weight_importance(model, kind="sq_g", scores=scores, scale=1 / len(batches))
            model.zero_grad()
    return weight_importance(model, kind="abs_g") if scores is None else scores


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def _of_weights(
    model: nn.Module, initial: Mapping[str, Tensor] | None, kind: str, generator: torch.Generator
) -> dict[str, Tensor]:
    scores = {}
    for name, value in model.named_parameters():
        wide = value.detach().to(torch.float64 if value.dtype == torch.float64 else torch.float32)
        if kind == "weight":
            scores[name] = wide.abs()
        elif kind == "moved":
            assert initial is not None, "checked by weight_scores"
            scores[name] = (wide - initial[name].to(wide)).abs()
        else:
            scores[name] = torch.rand(value.shape, dtype=wide.dtype, generator=generator).to(wide.device)
    return scores


def _endless(records: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Record numbers, a batch at a time, reshuffled after each pass; full batches where there are enough records."""
    size = min(batch_size, records)
    while True:
        order = torch.randperm(records, generator=generator)
        for start in range(0, records - size + 1, size):
            yield order[start : start + size]
