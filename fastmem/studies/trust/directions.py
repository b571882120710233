"""Who attacks whom, and with which records: each model of a pair is the target once, the other its shadow model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmem.studies.trust.job import Job

__all__ = ["Direction", "make_direction"]


@dataclass(frozen=True, eq=False)
class Direction:
    """One target and what its attacker is asked about; all indices are places in a row of answers.

    Args:
        target: The model under attack.
        shadow: The model that the attacker trained, on the other half of the pool.
        members: Records that the target trained on [n].
        sets: Non-members by set; those made of test records are of the target's half of them, ``test`` has n.
        shadow_members: Records that the shadow model trained on [n].
        shadow_test: Test records of the shadow model's half [n].
    """

    target: int
    shadow: int
    members: np.ndarray
    sets: dict[str, np.ndarray]
    shadow_members: np.ndarray
    shadow_test: np.ndarray


def make_direction(job: Job, target: int, size: int, seed: int) -> Direction:
    """The direction that attacks ``target`` with the other model of its pair.

    Args:
        job: The job.
        target: The model.
        size: n; at most half of the pool and of the test records.
        seed: Of the choice of records.
    """
    shadow = target ^ 1
    places = job.places
    sets = {
        records.name: _half(places[records.name], target, size, seed)
        if records.halves
        else np.arange(places[records.name].start, places[records.name].stop)[:size]
        for records in job.asked
        if records.name not in ("pool", "held_out")
    }
    return Direction(
        target,
        shadow,
        _members(job, target, size, seed),
        sets,
        _members(job, shadow, size, seed),
        _half(places["test"], shadow, size, seed),
    )


def _members(job: Job, model: int, size: int, seed: int) -> np.ndarray:
    own = np.flatnonzero(job.train[model])
    return np.sort(np.random.default_rng([seed, 17, model]).permutation(own)[:size])


def _half(place: slice, model: int, size: int, seed: int) -> np.ndarray:
    """The same test records in every set that is made of them."""
    half = (place.stop - place.start) // 2
    chosen = np.sort(np.random.default_rng([seed, 19, model]).permutation(half)[:size])
    return place.start + (model % 2) * half + chosen
