"""Membership inference from a handful of known records (Jimenez-Lopez et al. 2025, arXiv:2503.09365).

Instead of shadow models the attacker has a few records of which the membership in the target is known: s members and s
non-members to learn from, and as many again to tune on. :func:`fastmem.attacks.episodes` repeats that over hundreds of
random draws; :class:`FewShot` is one attack, on arrays or on Signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.few_shot.batch import Batch
from fastmem.attacks.membership.few_shot.episodes import check_centre, check_features
from fastmem.attacks.membership.few_shot.methods import METHODS, access, make_learner
from fastmem.errors import InputError
from fastmem.metrics.arrays import as_bool, as_float64
from fastmem.signals import Signals

__all__ = ["FewShot", "FewShotResult"]

# Asked about at a time, as in the published episodes, so that transductive methods see what they were tuned on.
_ASKED = 30
_UNEVEN = 0.1


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """What one attack found.

    Attributes:
        scores: float64 [Q], higher = more likely a member.
        params: Parameters that the validation records chose.
        n_labels: Records whose membership the attacker had to know: support and validation.
        transductive: Whether a score depends on the other records asked about; it is then no audit of one record.
    """

    scores: np.ndarray
    params: dict[str, float]
    n_labels: int
    transductive: bool


@dataclass(frozen=True, eq=False)
class FewShot(Attack):
    """One few-shot attack.

    On Signals every record is asked about: the records are split into halves, each is scored with a support drawn from
    the other one, and the features are the clean logits (black box) unless ``features`` are given.

    Args:
        method: ``simpleshot``, ``laplacian``, ``tim``, ``finetune_head``, or ``finetune``, which trains a copy of ``model``.
        shots: Known records of each kind, drawn where the attack is called on Signals.
        n_val: Records of each kind to tune on, likewise; they are labelled too.
        prior: Share of members among the records asked about, for ``tim``.
        centre: Mean that is taken off features where they are normalised: ``"support"``, a mean [d] from public data, or
            None.
        normalise: Centre features and scale them to unit length; by default for ``simpleshot`` and ``tim``.
        model: The target, for ``finetune``; its eval mode is used.
        features: What the models compute for the records, [M, N, d], in place of the logits.
        seed: Of the draws on Signals.

    Raises:
        InputError: An option is out of range, or ``finetune`` has no network.
    """

    method: str = "simpleshot"
    shots: int = 5
    n_val: int = 15
    prior: float = 0.5
    centre: Any = "support"
    normalise: bool | None = None
    model: nn.Module | None = None
    features: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        if self.shots < 1 or self.n_val < 0:
            raise InputError("shots, n_val", f"{self.shots}, {self.n_val}", "give at least 1 shot, and n_val from 0")
        if not 0 < self.prior < 1:
            raise InputError("prior", f"{self.prior}", "give a share of members between 0 and 1")
        if METHODS[self.method].white_box:
            make_learner(self.method, model=self.model)

    @property
    def key(self) -> str:
        """For example ``"few_shot_simpleshot"``."""
        return f"few_shot_{self.method}"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return f"{METHODS[self.method].title}, {self.shots} shots"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """None: it reads the logits."""
        return ()

    @property
    def options(self) -> dict[str, Any]:
        """The value of every option, for the report."""
        centre = self.centre if self.centre is None or isinstance(self.centre, str) else "given"
        plain = {name: value for name, value in super().options.items() if name != "model"}
        return plain | {"centre": centre, "features": "logits" if self.features is None else "given"}

    def score(
        self, support: Any, support_members: Any, query: Any, val: Any = None, val_members: Any = None
    ) -> FewShotResult:
        """Scores the query by the support.

        Args:
            support: Features [S, d] of records whose membership is known; for ``finetune`` the network's inputs.
            support_members: bool [S], both kinds.
            query: Features [Q, d] of the records asked about.
            val: Features [V, d] of further known records, which choose the method's parameters; by default its usual
                ones are taken.
            val_members: bool [V], both kinds.

        Raises:
            InputError: Features are constant, not finite or of different widths, a mask is not boolean, or a kind is
                missing.
        """
        known = _known("support", support, support_members, self._features)
        asked = self._features("query", query)
        tuned = None if val is None else _known("val", val, val_members, self._features)
        for argument, other in (("query", asked), *((("val", tuned[0]),) if tuned else ())):
            if other.shape[1:] != known[0].shape[1:]:
                raise InputError(
                    argument,
                    f"records of shape {list(other.shape[1:])} for a support of {list(known[0].shape[1:])}",
                    "give the same features of all",
                )
        if self.method != "finetune":
            check_features("support and query", np.concatenate([known[0], asked]))
        learner = self._learner(known[0].shape[-1])
        tensors = [torch.from_numpy(array)[None] for array in (*known, asked, *(tuned or ()))]
        with torch.no_grad():
            scored = learner(Batch.of(*tensors))
        return FewShotResult(
            scored.query[0].cpu().numpy(),
            {name: float(value[0]) for name, value in scored.params.items()},
            len(known[0]) + (len(tuned[0]) if tuned else 0),
            learner.transductive,
        )

    def _learner(self, width: int) -> Any:
        centre = check_centre(self.centre, width)
        return make_learner(self.method, prior=self.prior, centre=centre, normalise=self.normalise, model=self.model)

    def _features(self, argument: str, values: Any) -> np.ndarray:
        if self.method == "finetune":
            return np.ascontiguousarray(as_float64(argument, values, axes=("record",)), dtype=np.float32)
        array = as_float64(argument, values, axes=("record", "feature"))
        if array.ndim != 2 or array.size == 0:
            raise InputError(argument, f"shape {list(array.shape)}", "give [n, d], a row of numbers a record")
        return array

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        if METHODS[self.method].white_box:
            raise InputError("method", f"{self.method} on signals", "it trains the network; take finetune_head")
        scores = np.empty((len(targets), signals.num_samples))
        for row, target in enumerate(targets):
            scores[row] = self._score_all(self._of(signals, target), signals.keep[target], target)
        mix = float(signals.keep[targets].mean())
        warnings = ()
        if self.method == "tim" and abs(mix - self.prior) > _UNEVEN:
            warnings = (f"TIM presumes a share of {self.prior:g} members among the records, here it is {mix:.2f}",)
        details: dict[str, Any] = {
            "n_labels": 4 * (self.shots + self.n_val),
            "transductive": METHODS[self.method].transductive,
        }
        if self.features is None:
            details["access"] = access(self.method, answers_only=True)
        return AttackResult(scores, details, warnings)

    def _of(self, signals: Signals, target: int) -> np.ndarray:
        """A target's features [N, d]."""
        if self.features is None:
            logits = signals.select_models([target]).logits
            if logits is None:
                raise InputError("signals", "hold no logits, which are the features", "save them, or give features=")
            return check_features("logits", logits[0, :, 0].astype(np.float64))
        if target >= len(self.features):
            raise InputError(
                "features", f"of {len(self.features)} models, target {target}", "give those of every target"
            )
        features = check_features("features", self.features[target])
        if len(features) != signals.num_samples:
            raise InputError("features", f"{len(features)} records for {signals.num_samples}", "give the same records")
        return features

    def _score_all(self, features: np.ndarray, members: np.ndarray, target: int) -> np.ndarray:
        """Every record, by a support from the half that it is not in."""
        rng = np.random.default_rng([self.seed, target])
        halves = np.array_split(rng.permutation(len(features)), 2)
        scores = np.empty(len(features))
        for asked, known in zip(halves, halves[::-1], strict=True):
            support, val = self._pick(known, members, target)
            # The last set is filled up with records that have been asked about before.
            sets = torch.from_numpy(np.resize(asked, (-(-len(asked) // _ASKED), _ASKED)))
            rows = [support, members[support], *((val, members[val]) if len(val) else ())]
            shown = [torch.from_numpy(array).expand(len(sets), -1) for array in rows]
            batch = Batch(torch.from_numpy(features), shown[0], shown[1], sets, *shown[2:])
            with torch.no_grad():
                found = self._learner(features.shape[1])(batch)
            flat = found.query.numpy().reshape(-1)
            scores[asked] = flat[: len(asked)]
        return scores

    def _pick(self, known: np.ndarray, members: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
        support, val = [], []
        for kind in (True, False):
            records = known[members[known] == kind]
            if len(records) < self.shots + self.n_val:
                raise InputError(
                    "shots",
                    f"{self.shots} and {self.n_val} to tune on, but half of the records holds {len(records)} "
                    f"{'members' if kind else 'non-members'} of model {target}",
                    "give fewer shots or n_val, or more records",
                )
            support.append(records[: self.shots])
            val.append(records[self.shots : self.shots + self.n_val])
        return np.concatenate(support), np.concatenate(val)


def _known(argument: str, features: Any, members: Any, check: Any) -> tuple[np.ndarray, np.ndarray]:
    array, mask = check(argument, features), as_bool(f"{argument}_members", members)
    if mask.shape != (len(array),):
        raise InputError(f"{argument}_members", f"shape {list(mask.shape)}", f"give [{len(array)}], one a record")
    if mask.all() or not mask.any():
        kind = "non-members" if mask.all() else "members"
        raise InputError(f"{argument}_members", f"there are no {kind}", "give at least one record of each kind")
    return array, mask
