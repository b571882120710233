"""Hundreds of episodes at once, and the table of what they found beside what chance finds.

A mean over episodes is compared with the mean of their exact nulls (ties as they are). Its interval is 1.96 standard
errors over episodes; its p-value comes from the nulls' variances and the normal distribution. Episodes on one target share
its draw of members, so neither speaks for other targets: repeat with several.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from fastmem.attacks.membership.few_shot.batch import Batch, Learner
from fastmem.attacks.membership.few_shot.draw import Draw, draw_episodes
from fastmem.attacks.membership.few_shot.methods import METHODS, make_learner
from fastmem.errors import InputError
from fastmem.metrics.arrays import as_float64
from fastmem.metrics.log_mia import Sweep, adjust, regular_cap
from fastmem.metrics.log_mia_null import Null, accepted_null

__all__ = [
    "EpisodeScores",
    "EpisodeTable",
    "check_centre",
    "check_features",
    "episodes",
    "run_learner",
    "score_records",
]

# Numbers that a chunk of episodes may hold at a time: 128 MB of float64.
_CHUNK_VALUES = 1 << 24
_Z = 1.959963984540054
_ONE_SIDED = 1.6448536269514722


@dataclass(frozen=True, eq=False)
class EpisodeScores:
    """Scores of many episodes.

    Args:
        query: float64 [E, Q], higher = more likely a member.
        query_members: bool [E, Q].
        held: float64 [E, H] of records whose membership the attacker knows, for thresholds; None where there are none.
        held_members: bool [E, H].
        params: Parameters chosen, each [E].
        seconds: Time that scoring took.
    """

    query: np.ndarray
    query_members: np.ndarray
    held: np.ndarray | None
    held_members: np.ndarray | None
    params: dict[str, np.ndarray]
    seconds: float

    @classmethod
    def joined(cls, parts: Sequence[EpisodeScores]) -> EpisodeScores:
        """The episodes of several targets as one set."""
        held = [part.held for part in parts if part.held is not None]
        known = [part.held_members for part in parts if part.held_members is not None]
        return cls(
            np.concatenate([part.query for part in parts]),
            np.concatenate([part.query_members for part in parts]),
            np.concatenate(held) if len(held) == len(parts) else None,
            np.concatenate(known) if len(known) == len(parts) else None,
            {name: np.concatenate([part.params[name] for part in parts]) for name in parts[0].params},
            sum(part.seconds for part in parts),
        )

    def table(self) -> EpisodeTable:
        """What the episodes found."""
        sweep = Sweep(self.query, self.query_members)
        held = None
        if self.held is not None and self.held_members is not None:
            held = Sweep(self.held, self.held_members)
        regimes, held_out = {}, {}
        for name, cap in (("strict", 0), ("regular", regular_cap(self.query.shape[1]))):
            best = sweep.at(cap)
            regimes[name] = _regime(best.tp, best.fp, sweep.n_in, sweep.n_out, sweep.nulls(cap), cap)
            if held is not None:
                own = 0 if name == "strict" else regular_cap(held.n_in[0] + held.n_out[0])
                called = self.query >= held.at(own).threshold[:, None]
                tp, fp = (called & self.query_members).sum(axis=1), (called & ~self.query_members).sum(axis=1)
                nulls = [
                    accepted_null(*map(int, counts)) for counts in zip(sweep.n_in, sweep.n_out, tp + fp, strict=True)
                ]
                held_out[name] = _regime(tp, fp, sweep.n_in, sweep.n_out, nulls, cap)
        return EpisodeTable(
            episodes=len(self.query),
            n_in=int(sweep.n_in[0]),
            n_out=int(sweep.n_out[0]),
            auc=_mean(sweep.auc()),
            strict=regimes["strict"],
            regular=regimes["regular"],
            held_out=held_out,
            params={name: _common(values) for name, values in self.params.items()},
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class EpisodeTable:
    """Means over episodes.

    Args:
        episodes: How many.
        n_in: Members asked about in each.
        n_out: Non-members asked about in each.
        auc: ``mean``, ``low``, ``high`` of the area under the curve; chance 0.5.
        strict: At no false positive, thresholds chosen on the query itself: ``tpr`` and ``raw`` (Log-MIA), each a mean
            with ``low`` and ``high``; ``tpr_chance``, ``chance_mean`` and ``critical_mean`` (what chance exceeds in 5% of
            cases, as a mean over as many episodes); ``adjusted``; ``p_value``; ``fp_cap`` and the realised ``fpr``.
        regular: The same with at most ceil(ln(n_in + n_out)) false positives.
        held_out: ``strict`` and ``regular`` with thresholds from the validation records.
        params: The parameter chosen most often, and how often.
        seconds: Time that scoring took.
    """

    episodes: int
    n_in: int
    n_out: int
    auc: dict[str, float]
    strict: dict[str, Any]
    regular: dict[str, Any]
    held_out: dict[str, dict[str, Any]]
    params: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def episodes(
    features: Any,
    members: Any,
    *,
    method: str = "simpleshot",
    shots: int = 5,
    n_query: int = 15,
    n_val: int = 15,
    n_episodes: int = 500,
    seed: int = 0,
    prior: float = 0.5,
    centre: Any = "support",
    normalise: bool | None = None,
) -> EpisodeTable:
    """Few-shot membership inference on saved features, over many random episodes.

    Args:
        features: [N, d], any numbers that one model gives for each of N records.
        members: bool [N]: who was in its training set.
        method: ``simpleshot``, ``laplacian``, ``tim`` or ``finetune_head``.
        shots: Known records of each kind.
        n_query: Records of each kind asked about in an episode.
        n_val: Records of each kind to tune on; they are labelled too, so an episode costs 2 (shots + n_val) labels.
        n_episodes: Episodes.
        seed: Decides the draws.
        prior: Share of members asked about, for TIM; episodes hold half members.
        centre: ``"support"``, a mean [d] from public data, or None.
        normalise: Centre and scale features; by default as the method was published.

    Returns:
        The table.

    Raises:
        InputError: If features are constant or not finite, a kind is missing or has too few records.
    """
    if method in METHODS and METHODS[method].white_box:
        raise InputError("method", f"{method} on saved features", "it trains the network; take finetune_head")
    array = check_features("features", features)
    draw = draw_episodes(members, shots, n_val, n_query, n_episodes, seed)
    if len(array) != len(members):
        raise InputError("members", f"{len(members)} for {len(array)} records", "give one a record")
    learner = make_learner(method, prior=prior, centre=check_centre(centre, array.shape[1]), normalise=normalise)
    return run_learner(learner, torch.from_numpy(array), draw).table()


def check_features(argument: str, features: Any) -> np.ndarray:
    """Features as float64 [N, d], finite and not all alike.

    Raises:
        InputError: Otherwise.
    """
    array = as_float64(argument, features, axes=("record", "feature"))
    if array.ndim != 2 or array.size == 0:
        raise InputError(argument, f"shape {list(array.shape)}", "give [N, d], a row of numbers a record")
    if (array == array[0]).all():
        raise InputError(argument, "every record has the same values", "give features that differ between records")
    return array


def run_learner(
    learner: Learner, records: Tensor, draw: Draw, *, alone: bool = False, chunk: int | None = None
) -> EpisodeScores:
    """Scores the query of every episode.

    Args:
        learner: The learner.
        records: Features [N, d], or what the learner takes [N, ...].
        draw: The episodes.
        alone: Ask about each record by itself: what a transductive learner says without the others.
        chunk: Episodes at a time; by default as many as memory should hold.

    Returns:
        Query scores and, where the draw has validation records, theirs.
    """
    start = time.perf_counter()
    index = {name: torch.from_numpy(getattr(draw, name)).to(records.device) for name in Draw.__dataclass_fields__}
    support, val, asked = (index[name].shape[1] for name in ("support", "val", "query"))
    step = chunk or max(1, _CHUNK_VALUES // learner.values_per_episode(support, val, asked, records[0].numel()))
    step = max(1, step // (asked if alone else 1))
    parts = []
    with torch.no_grad():
        for first in range(0, len(draw), step):
            part = {name: values[first : first + step] for name, values in index.items()}
            parts.append(_score(learner, records, part, alone))
    query, val, params = zip(*parts, strict=True)
    known = [values for values in val if values is not None]
    return EpisodeScores(
        np.concatenate(query),
        draw.query_members,
        np.concatenate(known) if known else None,
        draw.val_members if known else None,
        {name: np.concatenate([each[name] for each in params]) for name in params[0]},
        time.perf_counter() - start,
    )


def _score(
    learner: Learner, records: Tensor, part: dict[str, Tensor], alone: bool
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    episodes_here, asked = part["query"].shape
    if alone:
        part = {
            name: values.reshape(-1, 1) if name.startswith("query") else values.repeat_interleave(asked, dim=0)
            for name, values in part.items()
        }
    some = part["val"].shape[1] > 0
    scored = learner(
        Batch(
            records,
            part["support"],
            part["support_members"],
            part["query"],
            part["val"] if some else None,
            part["val_members"] if some else None,
        )
    )
    of_val = None if scored.val is None or alone else scored.val.cpu().numpy()
    params = {name: values.cpu().numpy() for name, values in scored.params.items()}
    return scored.query.reshape(episodes_here, asked).cpu().numpy(), of_val, params


def score_records(scores: np.ndarray, draw: Draw, seconds: float = 0.0) -> EpisodeScores:
    """The episodes of an attack that scores every record by itself, for a comparison on the same draws.

    Args:
        scores: float64 [N].
        draw: The episodes; support and validation records give the held-out thresholds.
        seconds: Time that the attack took.
    """
    held = np.concatenate([draw.support, draw.val], axis=1)
    known = np.concatenate([draw.support_members, draw.val_members], axis=1)
    return EpisodeScores(scores[draw.query], draw.query_members, scores[held], known, {}, seconds)


def check_centre(centre: Any, width: int) -> Any:
    """``"support"``, None, or a mean [width] as float64.

    Raises:
        InputError: If it is none of these.
    """
    if centre is None or (isinstance(centre, str) and centre == "support"):
        return centre
    mean = as_float64("centre", centre, axes=("feature",))
    if mean.shape != (width,):
        raise InputError("centre", f"shape {list(mean.shape)}", f"give 'support', None, or a mean of shape [{width}]")
    return mean


def _regime(
    tp: np.ndarray, fp: np.ndarray, n_in: np.ndarray, n_out: np.ndarray, nulls: Sequence[Null], cap: int
) -> dict[str, Any]:
    raw = np.log1p(tp) / np.log1p(n_in)
    chance = float(np.mean([null.mean for null in nulls]))
    # Of the mean over episodes, drawn independently.
    deviation = math.sqrt(sum(null.sd**2 for null in nulls)) / len(nulls)
    mean = float(raw.mean())
    return {
        "tpr": _mean(tp / n_in),
        "tpr_chance": float(np.mean([null.mean_tp for null in nulls]) / n_in.mean()),
        "fpr": float((fp / n_out).mean()),
        "fp_cap": cap,
        "raw": _mean(raw),
        "chance_mean": chance,
        "critical_mean": chance + _ONE_SIDED * deviation,
        "adjusted": adjust(mean, chance),
        "p_value": float(ndtr(-(mean - chance) / deviation)) if deviation > 0 else 1.0,
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    mean = float(values.mean())
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _common(values: np.ndarray) -> dict[str, float]:
    found, counts = np.unique(values, return_counts=True)
    return {"most": float(found[counts.argmax()]), "share": float(counts.max() / counts.sum())}
