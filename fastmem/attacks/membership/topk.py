"""A classifier on the largest probabilities, learnt on one shadow model (Salem et al. 2019, arXiv:1806.01246).

Network and training are those of Hintersdorf, Struppek and Kersting (IJCAI 2022, arXiv:2111.09076), by scikit-learn:
the k largest probabilities, 64 ReLU units, one logit; cross-entropy, Adam at .01, batches of 16 (larger beyond 2,048
rows, so that an epoch has at most 128 steps), until the training loss gains less than 5e-4 for 15 epochs.

Two things differ from the paper because here all models share one pool of records. The classifier for a target is
fitted on another model, never on the target or its complement, with that model's own membership. And it never scores
a record it was fitted on (two halves of the pool take turns): otherwise it could learn records by heart, and one
model's membership says something of another's in a design of exact halves.

``fit`` is the published protocol, unchanged: the shadow model has records of its own, and batches are of 16.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmem.attacks.membership.base import AttackResult
from fastmem.attacks.membership.one_shadow import OneShadowAttack, Scores
from fastmem.attacks.membership.panel import Panel
from fastmem.errors import InputError
from fastmem.metrics import DecisionRule
from fastmem.signals import Signals

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

__all__ = ["TopK", "fit_classifier"]

_MAX_STEPS_PER_EPOCH = 128
_MAX_EPOCHS = 200


@dataclass(frozen=True)
class TopK(OneShadowAttack):
    """Membership probability by a small network on the k largest probabilities; a mean over queries.

    Args:
        k: 1, 2 or 3.
        seed: Of the halves, the initial weights and the order of batches.

    Raises:
        InputError: An option out of range. When called: a single model, fewer than four records, or a shadow model
            without both members and non-members in either half.
    """

    k: int = 3
    seed: int = 0

    needs_references = True

    def __post_init__(self) -> None:
        if self.k not in (1, 2, 3):
            raise InputError("k", f"got {self.k!r}", "accepted: 1, 2, 3 (signals hold the three largest probabilities)")

    @property
    def key(self) -> str:
        """``top3``, or ``top1`` or ``top2``."""
        return f"top{self.k}"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return f"Classifier on the {self.k} largest probabilities"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The three largest probabilities."""
        return ("top3",)

    def _fit(self, members: np.ndarray, others: np.ndarray) -> tuple[Scores, DecisionRule]:
        rows = np.concatenate([_largest(members, self.k), _largest(others, self.k)])
        classifier = fit_classifier(rows, np.arange(len(rows)) < len(members), self.seed)
        return _Probability(classifier, self.k), DecisionRule(0.5, strict=False)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        features = signals.stat("top3")[..., : self.k]
        halves = np.array_split(np.random.default_rng(self.seed).permutation(signals.num_samples), 2)
        shadows = _shadow_of_each(signals.keep, targets)
        fitted = {
            shadow: [self._fit_half(features[shadow, half], signals.keep[shadow, half], shadow) for half in halves]
            for shadow in set(shadows)
        }
        scores = np.empty((len(targets), signals.num_samples))
        for row, (target, shadow) in enumerate(zip(targets, shadows, strict=True)):
            for half, classifier in zip(halves[::-1], fitted[shadow], strict=True):
                probabilities = np.asarray(classifier.predict_proba(features[target, half].reshape(-1, self.k)))
                scores[row, half] = probabilities[:, 1].reshape(len(half), -1).mean(axis=1)
        return AttackResult(scores, {"shadows": shadows})

    def _fit_half(self, features: np.ndarray, members: np.ndarray, shadow: int) -> MLPClassifier:
        """A classifier from [n, A, k] features of one shadow model."""
        if members.all() or not members.any():
            raise InputError(
                "keep",
                f"shadow model {shadow} has {int(members.sum())} members among the {len(members)} records of a half",
                "the classifier needs members and non-members to learn from: give more records",
            )
        rows = features.reshape(-1, self.k)
        batch_size = max(16, -(-len(rows) // _MAX_STEPS_PER_EPOCH))
        labels = np.repeat(members, features.shape[1])
        return fit_classifier(rows, labels, self.seed, batch_size, _MAX_EPOCHS)


def fit_classifier(
    rows: np.ndarray, members: np.ndarray, seed: int, batch_size: int = 16, max_epochs: int = 10_000
) -> MLPClassifier:
    """The network of the papers, trained until the training loss gains less than 5e-4 for 15 epochs.

    Args:
        rows: The largest probabilities, descending, [n, k].
        members: bool [n], with both values.
        seed: Of the initial weights and the order of batches.
        batch_size: 16 as published.
        max_epochs: Where to stop in any case; published is never.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    size: Any = min(len(rows), batch_size)
    classifier = MLPClassifier(
        hidden_layer_sizes=(64,),
        alpha=0.0,
        batch_size=size,
        learning_rate_init=0.01,
        max_iter=max_epochs,
        tol=5e-4,
        n_iter_no_change=15,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last epoch is a classifier too
        return classifier.fit(rows, members)


@dataclass(frozen=True)
class _Probability:
    """The classifier's membership probability of whole probability vectors [n, C]."""

    classifier: MLPClassifier
    k: int

    def __call__(self, p: np.ndarray) -> np.ndarray:
        return np.asarray(self.classifier.predict_proba(_largest(p, self.k)), np.float64)[:, 1]


def _largest(p: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, descending."""
    return -np.sort(-p, axis=1)[:, :k]


def _shadow_of_each(keep: np.ndarray, targets: list[int]) -> list[int]:
    """The first model that is neither the target nor its complement, so that few classifiers serve all targets."""
    panel = Panel(keep, targets, "equal")
    shadows = []
    for target in targets:
        others = [model for model in range(len(keep)) if model not in (target, *panel.partner_of(target))]
        if not others:
            raise InputError(
                "signals",
                f"{len(keep)} models: none is left to learn from beside target {target} and its complement",
                "give at least three models",
            )
        shadows.append(others[0])
    return shadows
