"""The cells of the table: one method with one number of shots on one subject, each a task of the engine.

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
from torch import Tensor, nn

from fastmem.attacks.membership.few_shot import METHODS, Draw, EpisodeScores, draw_episodes, make_learner, run_learner
from fastmem.attacks.membership.few_shot.fit import TEXT
from fastmem.data.transforms import normalise
from fastmem.engine import Task
from fastmem.models.language import LanguageModel, PooledLogits
from fastmem.studies.few_shot.job import Job
from fastmem.studies.few_shot.store import load_model
from fastmem.studies.few_shot.task import build
from fastmem.studies.tensors import as_tensor
from fastmem.training import load_into

__all__ = ["CONTROLS", "Bench", "cell_tasks", "draw_of", "run_cell"]

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
    """

    features: np.ndarray
    blind: np.ndarray | None
    members: np.ndarray
    n_val: int
    n_query: int
    episodes: dict[str, int]
    seed: int
    job: Job | None


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
            tasks += [Task(f"{subject}/{method}/{count}") for count in sorted(shots, reverse=True)]
        if about.transductive and not about.white_box:
            tasks.append(Task(f"alone/{method}/{middle}"))
    return tuple(tasks)


def draw_of(bench: Bench, target: int, shots: int, episodes: int, shuffled: bool = False) -> Draw:
    """The episodes of one target, the same for every method of as many episodes."""
    each = max(2, episodes // len(bench.members))
    return draw_episodes(bench.members[target], shots, bench.n_val, bench.n_query, each, bench.seed + target, shuffled)


def run_cell(bench: Bench, task: Task) -> tuple[str, dict[str, Any]]:
    """Scores one cell.

    Returns:
        The task's group, and the cell's table.
    """
    subject, method, shots = task.group.split("/")
    most = {"target": bench.episodes[method], "alone": _ALONE_EPISODES}.get(subject, _CONTROL_EPISODES)
    episodes = min(bench.episodes[method], most)
    parts, together = [], []
    for target in range(len(bench.members)):
        draw = draw_of(bench, target, int(shots), episodes, subject == "shuffled")
        learner, records = _learner(bench, method, subject, target)
        parts.append(run_learner(learner, records, draw, alone=subject == "alone"))
        if subject == "alone":
            together.append(run_learner(learner, records, draw))
    scores = EpisodeScores.joined(parts)
    table = scores.table().to_dict() | {"n_labels": 2 * (int(shots) + bench.n_val)}
    if len(parts) > 1:
        each = [part.table() for part in parts]
        table["by_target"] = {
            "auc": [one.auc["mean"] for one in each],
            "strict": [one.strict["raw"]["mean"] for one in each],
            "regular": [one.regular["raw"]["mean"] for one in each],
        }
    if together:
        whole = EpisodeScores.joined(together)
        table["with_the_others"] = whole.table().to_dict()
        table["rank_correlation"] = _rank_correlation(scores.query, whole.query)
    return task.group, table


def _learner(bench: Bench, method: str, subject: str, target: int) -> tuple[Any, Tensor]:
    if METHODS[method].white_box:
        assert bench.job is not None, "the plan refuses methods that train where there is no network"
        return _white_box(
            bench.job, method, "blind" if subject == "blind" else "pool", 0 if subject == "blind" else target
        )
    features = bench.features[target]
    if subject == "blind":
        assert bench.blind is not None, "cell_tasks leaves it out"
        features = bench.blind
    elif subject == "random":
        features = np.random.default_rng([bench.seed, target]).normal(size=features.shape)
    return make_learner(method), torch.from_numpy(np.array(features, dtype=np.float64))


def _white_box(job: Job, method: str, group: str, row: int) -> tuple[Any, Tensor]:
    network = _network(job, group, row).to(job.device)
    records = as_tensor(job.pool)
    if isinstance(network, LanguageModel):
        return make_learner(method, model=PooledLogits(network), schedule=TEXT), records.to(job.device)
    inputs = normalise(records, as_tensor(job.mean), as_tensor(job.std))
    return make_learner(method, model=network), inputs.to(job.device)


def _network(job: Job, group: str, row: int) -> nn.Module:
    found = load_model(job, group, row)
    assert found is not None, "the run has made sure of it"
    network = build(job, seed=0)
    load_into(network, found[0])
    return network.eval()


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over episodes of Spearman's correlation; episodes in which either is constant do not count."""
    values = [
        float(np.asarray(spearmanr(a, b))[0])
        for a, b in zip(one, other, strict=True)
        if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    return float(np.mean(values)) if values else float("nan")
