"""What the tasks do: train models by recipe and save them; then take one model through every arm, and ask it.

A model's scores are computed once and shared by the arms that rank by them. Each arm's row is written as soon as it is
there; what an earlier run has written is left as it is.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data import make_queries
from fastmem.defenses import Privacy, Records, Rewound, Scoring, make_loss, rewind, weight_scores
from fastmem.engine import Task
from fastmem.errors import StoreError
from fastmem.models import build_model
from fastmem.signals.query import query_model
from fastmem.signals.store import SignalsWriter
from fastmem.studies.rewind.arms import Arm
from fastmem.studies.rewind.entangle import write_entanglement
from fastmem.studies.rewind.job import Job
from fastmem.studies.tensors import as_tensor
from fastmem.training import Recipe, load_checkpoint, load_into, save_checkpoint, train_models
from fastmem.training.evaluate import evaluate

__all__ = [
    "DELIVERED",
    "build",
    "delivers",
    "initial_state",
    "load_saved",
    "open_writer",
    "repair",
    "train",
    "train_states",
    "undelivered",
]

METADATA = "fastmem_rewind"
#: The file that a user's own model is written to.
DELIVERED = "repaired.safetensors"


def train(job: Job, task: Task) -> int:
    """Trains the models of a task and saves each; returns how many."""
    cohort = job.cohorts[task.group]
    for row, state in zip(task.rows, train_states(job, cohort.recipe, task.rows), strict=True):
        about = {"key": cohort.keys[row], "model": f"{cohort.name} {row}"}
        # One entry: safetensors writes several in an order of its own, and equal runs should give equal bytes.
        save_checkpoint(job.checkpoint(task.group, row), state, {METADATA: json.dumps(about)})
    return len(task.rows)


def train_states(
    job: Job, recipe: Recipe, rows: tuple[int, ...], mask: np.ndarray | None = None
) -> list[dict[str, Tensor]]:
    """Trained states of some models; ``mask`` replaces the job's [M, R]."""
    keep = job.keep if mask is None else mask
    trained = train_models(
        functools.partial(build, job),
        as_tensor(job.x),
        as_tensor(job.y),
        keep[list(rows)],
        recipe,
        [job.seeds[row] for row in rows],
        (as_tensor(job.mean), as_tensor(job.std)),
        device=job.device,
        validation=(as_tensor(job.validation_x), as_tensor(job.validation_y)) if recipe.patience else None,
    )
    return [result.state for result in trained]


def repair(job: Job, task: Task) -> int:
    """Takes the models of a task through every arm whose row is missing; returns how many rows were written."""
    return sum(_repair(job, row) for row in task.rows)


def _repair(job: Job, row: int) -> int:
    writers = {arm.key: open_writer(job, arm.key) for arm in job.arms}
    missing = [
        arm
        for arm in job.arms
        if not writers[arm.key].is_complete(row, job.arm_keys[arm.key][row]) or (row == 0 and undelivered(job, arm))
    ]
    model = _Model(job, row)
    for arm in missing:
        network = model.under(arm)
        answers = query_model(
            network,
            as_tensor(job.x),
            as_tensor(job.y),
            make_queries("none"),
            ("logits",),
            (as_tensor(job.mean), as_tensor(job.std)),
            job.query_batch,
            job.device,
        )
        writers[arm.key].write_row(row, answers, job.arm_keys[arm.key][row])
    if row < len(job.entangle_keys):
        write_entanglement(job, row, model.network, model.scores)
    return len(missing)


class _Model:
    """One trained model, and what its arms share."""

    def __init__(self, job: Job, row: int) -> None:
        self._job, self._row, config = job, row, job.config
        normalisation = (as_tensor(job.mean), as_tensor(job.std))
        x, y = job.x[job.keep[row]], job.y[job.keep[row]]
        if job.given is not None and row == 0:
            x, y = job.given.x, job.given.y
        self._members = Records(as_tensor(x), as_tensor(y), normalisation)
        self._reference = Records(as_tensor(job.reference_x), as_tensor(job.reference_y), normalisation)
        self._initial = initial_state(job, row)
        self._scoring = Scoring(
            mix=config.mix,
            steps=config.score_steps,
            learning_rate=config.score_learning_rate,
            kl_direction=config.kl_direction,  # type: ignore[arg-type]
        )
        self._found: dict[str, dict[str, Tensor]] = {}
        self.network = self._network(trained_state(job, "none", row))

    def scores(self, kind: str) -> dict[str, Tensor]:
        """Scores of the trained network."""
        if kind not in self._found:
            self._found[kind] = weight_scores(
                self.network,
                self._members,
                self._reference,
                initial=self._initial,
                kind=kind,  # type: ignore[arg-type]
                scoring=self._scoring,
                norms=self._job.config.norms,
                biases=self._job.config.biases,
                seed=self._job.seeds[self._row],
            )
        return self._found[kind]

    def under(self, arm: Arm) -> nn.Module:
        """The network after an arm's treatment."""
        if arm.start == "stopped":
            return self._network(trained_state(self._job, "early_stopping", self._row))
        if arm.variant is None:
            return self.network
        result = self._rewound(arm)
        if self._row == 0 and delivers(self._job, arm):
            about = {"key": self._job.arm_keys[arm.key][0], "rewound": result.frozen, "fraction": arm.fraction}
            save_checkpoint(Path(self._job.folder) / DELIVERED, result.state, {METADATA: json.dumps(about)})
        return self._network(result.state)

    def _rewound(self, arm: Arm) -> Rewound:
        config = self._job.config
        scratch = arm.start == "initial"
        name, options = arm.loss
        return rewind(
            self._network(self._initial) if scratch else self.network,
            # From scratch nothing is rewound; what it was before is asked for all the same.
            trained_state(self._job, "none", self._row) if scratch else self._initial,
            self._members,
            fraction=arm.fraction or 0.01,
            variant=arm.variant,  # type: ignore[arg-type]
            scores=None if arm.score is None else self.scores(arm.score),
            loss=make_loss(name, **options),
            tuning=config.longer if scratch else config.tuning,
            scope=config.scope,  # type: ignore[arg-type]
            batch_norm=config.batch_norm,  # type: ignore[arg-type]
            privacy=Privacy(config.noise, config.clip) if arm.private else None,
            seed=self._job.seeds[self._row],
        )

    def _network(self, state: Mapping[str, Tensor]) -> nn.Module:
        network = build(self._job, seed=0)
        load_into(network, state)
        return network.to(self._job.device)


def delivers(job: Job, arm: Arm) -> bool:
    """Whether an arm makes the repaired model of a user's own."""
    return job.given is not None and arm.method == "cwrf" and arm.fraction == job.config.control_fraction


def undelivered(job: Job, arm: Arm) -> bool:
    """Whether an arm's repaired model should be there and is not."""
    if not delivers(job, arm):
        return False
    try:
        _, metadata = load_checkpoint(Path(job.folder) / DELIVERED)
    except StoreError:
        return True
    return json.loads(metadata.get(METADATA, "{}")).get("key") != job.arm_keys[arm.key][0]


def initial_state(job: Job, row: int) -> dict[str, Tensor]:
    """The weights that a model's training began with."""
    if job.given is not None and row == 0:
        return {name: torch.from_numpy(value.copy()) for name, value in job.given.initial.items()}
    return {name: value.clone() for name, value in build(job, job.seeds[row]).state_dict().items()}


def trained_state(job: Job, cohort: str, row: int) -> dict[str, Tensor]:
    """The saved state of a trained model, or the user's own."""
    if job.given is not None and row == 0 and cohort == "none":
        return {name: torch.from_numpy(value.copy()) for name, value in job.given.trained.items()}
    state = load_saved(job, cohort, row)
    if state is None:
        raise StoreError(str(job.checkpoint(cohort, row)), "was changed during the run", "run the same command again")
    return state


def validation_loss(job: Job) -> float:
    """Mean cross-entropy of the first trained model on the validation records, in nats."""
    network = build(job, seed=0)
    load_into(network, trained_state(job, "none", 0))
    x, y = as_tensor(job.validation_x).to(job.device), as_tensor(job.validation_y).to(job.device)
    normalisation = (as_tensor(job.mean).to(job.device), as_tensor(job.std).to(job.device))
    return evaluate(network.to(job.device), x, y, normalisation)[0]


def build(job: Job, seed: int) -> nn.Module:
    """The job's network with initial weights from ``seed``."""
    return build_model(job.config.model, job.input_shape, job.num_classes, seed, **job.config.model_args)


def open_writer(job: Job, group: str, fresh: bool = False) -> SignalsWriter:
    """The place of an arm's rows in the store, made if it is not there."""
    return SignalsWriter(job.store, job.y, job.keep, ("logits",), num_classes=job.num_classes, group=group, fresh=fresh)


def load_saved(job: Job, cohort: str, model: int) -> dict[str, Tensor] | None:
    """The saved state of a model, or None if it is absent, damaged or of another key."""
    try:
        state, metadata = load_checkpoint(job.checkpoint(cohort, model))
    except StoreError:
        return None
    about = json.loads(metadata.get(METADATA, "{}"))
    return state if about.get("key") == job.cohorts[cohort].keys[model] else None
