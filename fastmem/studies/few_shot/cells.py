"""The cells of the table: one method with one number of shots on one subject, each a task of the engine, or several slices.

The subjects are the targets themselves and where there is nothing to find: a *blind* model that never saw the pool, with the
targets' masks; *shuffled* membership, drawn anew in every episode; and *random* features. *alone* asks the targets about
one record at a time: what a transductive method says without the other records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from fastmem.attacks.membership.few_shot import METHODS, Draw, EpisodeScores, draw_episodes, make_learner, run_learner
from fastmem.engine import Task
from fastmem.studies.few_shot.job import Job
from fastmem.studies.few_shot.slices import cut, is_sliced, read_slice, score_slice

__all__ = ["CONTROLS", "Bench", "cell_tasks", "draw_of", "finished_slice", "run_cell", "sliced_table"]

CONTROLS = ("blind", "shuffled", "random")
# Enough to see a control that is off chance; asking about one record at a time costs as much as 30 episodes.
_CONTROL_EPISODES = 200
_ALONE_EPISODES = 20


@dataclass(frozen=True, eq=False)
class Bench:
    """What all cells read.

    Args:
        features: Of each target [T, N, d].
        blind: Of the blind model [N, d], or None.
        members: bool [T, N].
        n_val: Records of each kind to tune on.
        n_query: Records of each kind asked about.
        episodes: By method, over all targets.
        seed: Of the draws.
        job: The networks, for methods that train them.
        code: Version of what trains them.
    """

    features: np.ndarray
    blind: np.ndarray | None
    members: np.ndarray
    n_val: int
    n_query: int
    episodes: dict[str, int]
    seed: int
    job: Job | None
    code: str


def cell_tasks(bench: Bench, shots: tuple[int, ...]) -> tuple[Task, ...]:
    """Every cell, the slow ones first; a task's group says which."""
    tasks = []
    middle = shots[len(shots) // 2]
    for method in sorted(bench.episodes, key=lambda key: key != "finetune"):
        about = METHODS[method]
        subjects = ["target", *CONTROLS]
        if bench.blind is None:
            subjects.remove("blind")
        if about.white_box:
            subjects.remove("random")  # it has no features to replace
        for subject in subjects:
            for group in [f"{subject}/{method}/{count}" for count in sorted(shots, reverse=True)]:
                if is_sliced(group):
                    assert bench.job is not None, "the plan refuses methods that train where there is no network"
                    tasks += cut(bench.job, group, len(bench.members), _each(bench, _episodes(bench, group)))
                else:
                    tasks.append(Task(group))
        if about.transductive and not about.white_box:
            tasks.append(Task(f"alone/{method}/{middle}"))
    return tuple(tasks)


def draw_of(bench: Bench, target: int, shots: int, episodes: int, shuffled: bool = False) -> Draw:
    """The episodes of one target, the same for every method of as many episodes."""
    each = _each(bench, episodes)
    return draw_episodes(bench.members[target], shots, bench.n_val, bench.n_query, each, bench.seed + target, shuffled)


def run_cell(bench: Bench, task: Task) -> tuple[str, dict[str, Any] | None]:
    """Scores one cell, or a slice of one, which is then on disk.

    Returns:
        The task's group, and the cell's table; None for a slice.
    """
    if task.rows:
        assert bench.job is not None
        score_slice(bench.job, task, *_slice_of(bench, task), bench.code)
        return task.group, None
    subject, method, _ = task.group.split("/")
    parts, together = [], []
    for target in range(len(bench.members)):
        draw = _draw(bench, task.group, target)
        learner, records = make_learner(method), _features(bench, subject, target)
        parts.append(run_learner(learner, records, draw, alone=subject == "alone"))
        if subject == "alone":
            together.append(run_learner(learner, records, draw))
    table = _table(bench, task.group, parts)
    if together:
        whole = EpisodeScores.joined(together)
        table["with_the_others"] = whole.table().to_dict()
        table["rank_correlation"] = _rank_correlation(EpisodeScores.joined(parts).query, whole.query)
    return task.group, table


def finished_slice(bench: Bench, task: Task) -> EpisodeScores | None:
    """What a slice gave, if it is there."""
    assert bench.job is not None
    return read_slice(bench.job, task, *_slice_of(bench, task), bench.code)


def sliced_table(bench: Bench, group: str, slices: list[EpisodeScores]) -> dict[str, Any]:
    """The table of a cell from all its slices, in order."""
    of_target = len(slices) // len(bench.members)
    parts = [EpisodeScores.joined(slices[first : first + of_target]) for first in range(0, len(slices), of_target)]
    return _table(bench, group, parts)


def _each(bench: Bench, episodes: int) -> int:
    """Episodes of each target."""
    return max(2, episodes // len(bench.members))


def _episodes(bench: Bench, group: str) -> int:
    """Episodes of a cell, over all targets."""
    subject, method, _ = group.split("/")
    most = {"target": bench.episodes[method], "alone": _ALONE_EPISODES}.get(subject, _CONTROL_EPISODES)
    return min(bench.episodes[method], most)


def _draw(bench: Bench, group: str, target: int) -> Draw:
    subject, _, shots = group.split("/")
    return draw_of(bench, target, int(shots), _episodes(bench, group), subject == "shuffled")


def _slice_of(bench: Bench, task: Task) -> tuple[int, Draw]:
    """The target of a slice, and its episodes."""
    target, first = divmod(task.rows[0], _each(bench, _episodes(bench, task.group)))
    return target, _draw(bench, task.group, target).part(first, first + len(task.rows))


def _table(bench: Bench, group: str, parts: list[EpisodeScores]) -> dict[str, Any]:
    """A cell's table from the episodes of each target."""
    shots = int(group.split("/")[2])
    table = EpisodeScores.joined(parts).table().to_dict() | {"n_labels": 2 * (shots + bench.n_val)}
    if len(parts) > 1:
        each = [part.table() for part in parts]
        table["by_target"] = {
            "auc": [one.auc["mean"] for one in each],
            "strict": [one.strict["raw"]["mean"] for one in each],
            "regular": [one.regular["raw"]["mean"] for one in each],
        }
    return table


def _features(bench: Bench, subject: str, target: int) -> Tensor:
    features = bench.features[target]
    if subject == "blind":
        assert bench.blind is not None, "cell_tasks leaves it out"
        features = bench.blind
    elif subject == "random":
        features = np.random.default_rng([bench.seed, target]).normal(size=features.shape)
    return torch.from_numpy(np.array(features, dtype=np.float64))


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over episodes of Spearman's correlation; episodes in which either is constant do not count."""
    values = [
        float(np.asarray(spearmanr(a, b))[0])
        for a, b in zip(one, other, strict=True)
        if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    return float(np.mean(values)) if values else float("nan")
