"""Episodes: which records are known, tuned on and asked about, drawn anew for each of hundreds of small problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmem.errors import InputError
from fastmem.metrics.arrays import as_bool

__all__ = ["Draw", "draw_episodes"]


@dataclass(frozen=True, eq=False)
class Draw:
    """Record numbers int64 [E, n] and whether each counts as a member, bool [E, n], in three parts without overlap.

    The order within an episode is random, so that ties broken by position favour nobody.
    """

    support: np.ndarray
    support_members: np.ndarray
    val: np.ndarray
    val_members: np.ndarray
    query: np.ndarray
    query_members: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    def part(self, first: int, last: int) -> Draw:
        """Episodes first to last - 1."""
        return Draw(**{name: getattr(self, name)[first:last] for name in self.__dataclass_fields__})

    @property
    def n_labels(self) -> int:
        """Labelled records that an attacker of one episode must have: support and validation."""
        return self.support.shape[1] + self.val.shape[1]


def draw_episodes(
    members: np.ndarray,
    shots: int,
    n_val: int = 15,
    n_query: int = 15,
    n_episodes: int = 500,
    seed: int = 0,
    shuffled: bool = False,
) -> Draw:
    """Draws shots + n_val + n_query members and as many non-members for each episode, without replacement.

    Args:
        members: bool [N].
        shots: Known records of each kind, at least 1.
        n_val: Records of each kind to tune on; 0 for none.
        n_query: Records of each kind asked about, at least 1.
        n_episodes: Episodes, at least 1.
        seed: Decides the draws.
        shuffled: The control: who counts as a member is drawn anew in every episode, whatever the mask says.

    Raises:
        InputError: If a number is too small, or larger than what there is of a kind.
    """
    mask = as_bool("members", members)
    for argument, given, least in (
        ("shots", shots, 1),
        ("n_val", n_val, 0),
        ("n_query", n_query, 1),
        ("episodes", n_episodes, 1),
    ):
        if given < least:
            raise InputError(argument, f"{given}", f"give at least {least}")
    kinds = np.flatnonzero(mask), np.flatnonzero(~mask)
    if not all(len(kind) for kind in kinds):
        missing = "members" if not len(kinds[0]) else "non-members"
        raise InputError("members", f"there are no {missing}", "an episode needs records of both kinds")
    each = shots + n_val + n_query
    scarce = min(len(kind) for kind in kinds)
    if each > scarce:
        name = "members" if len(kinds[0]) <= len(kinds[1]) else "non-members"
        raise InputError(
            "shots",
            f"{shots} shots, {n_val} validation and {n_query} query records of each kind, but there are {scarce} {name}",
            f"give at most {max(scarce - n_val - n_query, 0)} shots, or smaller validation and query sets",
        )
    rng = np.random.default_rng([seed, shots, int(shuffled)])
    chosen = np.empty((n_episodes, 2, each), dtype=np.int64)
    for episode in chosen:
        if shuffled:
            episode[:] = rng.choice(len(mask), (2, each), replace=False)
        else:
            for row, kind in zip(episode, kinds, strict=True):
                row[:] = rng.choice(kind, each, replace=False)
    ends = np.cumsum([shots, n_val, n_query])
    parts = []
    for start, end in zip(ends - [shots, n_val, n_query], ends, strict=True):
        records = chosen[:, :, start:end].reshape(n_episodes, -1)
        known = np.tile(np.repeat([True, False], end - start), (n_episodes, 1))
        order = rng.permuted(np.tile(np.arange(records.shape[1]), (n_episodes, 1)), axis=1)
        parts += [np.take_along_axis(array, order, axis=1) for array in (records, known)]
    return Draw(*parts)
