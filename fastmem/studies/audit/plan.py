"""From a config to work: records, masks, seeds and the content key of every row, before anything is trained.

Two cohorts of models are trained. The *shadow* models train on the pool, each on its half. The *null* models train on
bystanders and never see the pool; the mask that the attacks get for them is of the same design and means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from fastmem.attacks import ATTACKS, make_attack
from fastmem.data import Dataset, Split, load_dataset, make_design, make_queries, split_records
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import is_import_path
from fastmem.models import build_model, count_parameters
from fastmem.ops import explain
from fastmem.signals import Signals, stored_names
from fastmem.studies.audit.config import AuditConfig
from fastmem.training import Recipe

__all__ = ["AuditPlan", "Cohort", "Job", "Table", "make_plan"]

# The clean answers' correctness gives the train and test accuracy of every model.
_ALWAYS_STORED = ("margin", "hinge")
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]

# Enough made-up records that an attack which fits a classifier finds both classes in every part of them.
_TRIED_RECORDS = 128

_TASK_OPERATIONS = 2e10
_LARGEST_PACK = 16

_TRAINING_CODE = ("data", "models", "ops", "training")
_QUERY_CODE = ("data", "ops", "signals")


@dataclass(frozen=True, eq=False)
class Table:
    """Records that a cohort is queried on, and where the answers go.

    Args:
        group: Group of the signals store.
        x: Records [N, ...].
        y: Labels [N].
        keep: The mask [M, N] that the attacks will get.
        keys: Content key of each model's row.
    """

    group: str
    x: np.ndarray
    y: np.ndarray
    keep: np.ndarray
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Models that are trained on parts of one set of records.

    Args:
        name: ``"shadow"`` or ``"null"``.
        x: Training records [R, ...].
        y: Their labels [R].
        train: Which of them each model trains on, bool [M, R].
        seeds: Seed of each model's initial weights, batch order, augmentation and dropout.
        keys: Content key of each trained model.
        tables: What the models are queried on.
        keep_models: Whether the models are saved.
        held_out: Records and labels that early stopping watches, where the recipe asks for it.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    tables: tuple[Table, ...]
    keep_models: bool
    held_out: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Job:
    """What every task shares; plain values and numpy arrays, so that it travels to other processes.

    Args:
        cohorts: By name.
        model: Name or import path of the network.
        model_args: Its options.
        input_shape: Shape of one record.
        num_classes: C.
        mean: Normalisation of the inputs.
        std: The same.
        recipe: How to train.
        queries: Kind of the views shown.
        stats: Statistics to store.
        save_logits: Whether logits are stored too.
        device: ``"cpu"`` or ``"cuda"``.
        store: Folder of the signals.
        models: Folder of the saved models.
    """

    cohorts: dict[str, Cohort]
    model: str
    model_args: dict[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    recipe: Recipe
    queries: str
    stats: tuple[str, ...]
    save_logits: bool
    device: str
    store: str
    models: str

    @property
    def arrays(self) -> tuple[str, ...]:
        """What a row of the store holds."""
        return (*self.stats, "logits") if self.save_logits else self.stats


@dataclass(frozen=True, eq=False)
class AuditPlan:
    """An audit, ready to run.

    Args:
        config: The config with its defaults resolved.
        dataset: All records.
        fingerprint: SHA-256 of them.
        split: Which are in the pool, the population and with the bystanders.
        attacks: By key.
        job: What the tasks share.
        workers: Processes.
        parameters: Trainable values of one model.
        dense: Whether all of them are in linear layers.
    """

    config: AuditConfig
    dataset: Dataset
    fingerprint: str
    split: Split
    attacks: dict[str, Any]
    job: Job
    workers: int
    parameters: int
    dense: bool

    @property
    def rows_per_task(self) -> int:
        """Models that a task trains: one, but for perceptrons so small that a pack of them takes a second or so."""
        if not self.dense:
            return 1
        records = self.job.cohorts["shadow"].train.sum(axis=1).mean()
        # Forward and backward cost about six operations a weight and record.
        operations = 6 * self.parameters * records * self.config.recipe.epochs
        return int(np.clip(_TASK_OPERATIONS / operations, 1, _LARGEST_PACK))

    @property
    def num_rows(self) -> int:
        """All models to train, the audited ones and the controls."""
        return sum(len(cohort.seeds) for cohort in self.job.cohorts.values())

    @property
    def num_queries(self) -> int:
        """A, how many views of a record the models are shown."""
        return len(make_queries(self.config.queries))

    @property
    def targets(self) -> range:
        """The models under attack."""
        return range(self.config.targets or self.config.num_models)


def make_plan(config: AuditConfig) -> AuditPlan:
    """Loads the data and checks everything that can be checked before training.

    Args:
        config: What to do.

    Raises:
        InputError: If a name is unknown, sizes do not fit, or an attack cannot work with so few models.
    """
    device = _device(config.device)
    attacks = _attacks(config)
    dataset = load_dataset(config.data, config.data_root)
    split = split_records(dataset, config.pool, config.population, config.bystanders, config.seed)
    config = _resolved(config, split)
    attacks = _possible(attacks, config)
    make_queries(config.queries, dataset.input_shape)
    model = build_model(config.model, dataset.input_shape, dataset.num_classes, 0, **config.model_args)
    required = [stat for attack in attacks.values() for stat in attack.required_stats]
    mean, std = split.pool.channel_stats()
    job = Job(
        cohorts={},
        model=config.model,
        model_args=config.model_args,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        mean=mean.numpy(),
        std=std.numpy(),
        recipe=config.recipe,
        queries=config.queries,
        stats=stored_names([*_ALWAYS_STORED, *required]),
        save_logits=config.save_logits,
        device=device,
        store=str(config.run_dir / "signals.zarr"),
        models=str(config.run_dir / "models"),
    )
    job = replace(job, cohorts={cohort.name: cohort for cohort in _cohorts(config, split, job)})
    return AuditPlan(
        config,
        dataset,
        dataset.fingerprint(),
        split,
        attacks,
        job,
        config.workers or (1 if device == "cuda" else joblib.cpu_count()),
        count_parameters(model),
        all(isinstance(module, nn.Linear) or not list(module.parameters(recurse=False)) for module in model.modules()),
    )


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "cuda, but torch finds no CUDA device here", "give --device cpu or auto")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _attacks(config: AuditConfig) -> dict[str, Any]:
    keys = tuple(ATTACKS) if config.attack_keys == ("all",) else config.attack_keys
    if not keys:
        raise InputError("attacks", "none given", f"name some of {', '.join(ATTACKS)}, or all")
    for key in keys:
        if key not in ATTACKS:
            raise UnknownNameError("attacks", key, [*ATTACKS, "all"])
    return {key: make_attack(key) for key in keys}


def _resolved(config: AuditConfig, split: Split) -> AuditConfig:
    """The config with every default that depends on the data filled in."""
    model_args = dict(config.model_args)
    if config.model == "mlp" and "hidden" not in model_args and split.pool.x[0].numel() <= _FEW_INPUTS:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    bystanders = len(split.bystander_index)
    return replace(
        config,
        pool=len(split.pool_index),
        population=len(split.population_index),
        bystanders=bystanders,
        null_models=config.null_models if bystanders else 0,
        model_args=model_args,
    )


def _possible(attacks: dict[str, Any], config: AuditConfig) -> dict[str, Any]:
    """The attacks, each tried on a few made-up records, so that too few models show now and not after training."""
    if not config.population:
        without = {key: attack for key, attack in attacks.items() if not attack.needs_population}
        if config.attack_keys != ("all",) and len(without) < len(attacks):
            missing = ", ".join(sorted(set(attacks) - set(without)))
            raise InputError("population", f"no records are set aside, but {missing} compare with them", "give some")
        attacks = without
    for argument, count in (("num_models", config.num_models), ("null_models", config.null_models)):
        if not count:
            continue
        rng = np.random.default_rng(0)
        keep = make_design(config.design, count, _TRIED_RECORDS, 0)
        pool, population = (_made_up(attacks, mask, rng) for mask in (keep, np.zeros_like(keep)))
        for key, attack in attacks.items():
            try:
                attack(pool, targets=[0], population=population if attack.needs_population else None)
            except InputError as error:
                raise InputError(
                    argument, f"{count}, but {key} cannot work with that ({error.problem})", error.remedy
                ) from error
    return attacks


def _made_up(attacks: dict[str, Any], keep: np.ndarray, rng: np.random.Generator) -> Signals:
    logits = rng.normal(size=(*keep.shape, 1, 3))
    return Signals(labels=np.arange(keep.shape[1]) % 3, keep=keep, logits=logits)


def _cohorts(config: AuditConfig, split: Split, job: Job) -> list[Cohort]:
    design, seed = config.design, config.seed
    keep = make_design(design, config.num_models, len(split.pool), seed)
    cohorts = [_cohort("shadow", "", split.pool, keep, keep, config, split, job)]
    if config.null_models and split.bystanders is not None:
        rng = np.random.default_rng([seed, 1])
        shape = (config.null_models, len(split.bystanders))
        # As many records as an audited model trains on, where there are that many.
        size = min(len(split.pool) // 2, shape[1])
        train = rng.permuted(np.tile(np.arange(shape[1]) < size, (shape[0], 1)), axis=1)
        claimed = make_design(design, config.null_models, len(split.pool), seed + 1)
        cohorts.append(_cohort("null", "null", split.bystanders, train, claimed, config, split, job))
    return cohorts


def _cohort(
    name: str,
    group: str,
    records: Dataset,
    train: np.ndarray,
    keep: np.ndarray,
    config: AuditConfig,
    split: Split,
    job: Job,
) -> Cohort:
    seeds = tuple(_model_seed(config.seed, name, model) for model in range(len(train)))
    held_out = _held_out(config, split, name)
    keys = _training_keys(records, train, seeds, held_out, job)
    queried = [(group, split.pool, keep)]
    if split.population is not None:
        unseen = np.zeros((len(train), len(split.population)), dtype=bool)
        queried.append((f"{group}/population".lstrip("/"), split.population, unseen))
    return Cohort(
        name=name,
        x=records.x.numpy(),
        y=records.y.numpy(),
        train=train,
        seeds=seeds,
        keys=keys,
        tables=tuple(_table(where, shown, mask, keys, job) for where, shown, mask in queried),
        keep_models=config.save_models and name == "shadow",
        held_out=None if held_out is None else (held_out.x.numpy(), held_out.y.numpy()),
    )


def _held_out(config: AuditConfig, split: Split, name: str) -> Dataset | None:
    """What early stopping watches: never the records under attack, nor those that the attacks compare with."""
    if config.recipe.patience is None:
        return None
    records = split.bystanders if name == "shadow" else split.population
    if records is None:
        raise InputError(
            "recipe.patience",
            f"{config.recipe.patience}, but no records are left to watch",
            "give some --bystanders and --population, or leave it out",
        )
    return records


def _table(group: str, records: Dataset, keep: np.ndarray, models: tuple[str, ...], job: Job) -> Table:
    shared = {
        "records": records.fingerprint(),
        "normalisation": (job.mean, job.std),
        "queries": [query.name for query in make_queries(job.queries)],
        "stats": job.stats,
        "save_logits": job.save_logits,
        "device": job.device,
        "backend": _statistics_backend(job),
        "code": code_version(*_QUERY_CODE),
    }
    keys = tuple(content_key(model=key, keep=row, **shared) for key, row in zip(models, keep, strict=True))
    return Table(group, records.x.numpy(), records.y.numpy(), keep, keys)


def _training_keys(
    records: Dataset, train: np.ndarray, seeds: tuple[int, ...], held_out: Dataset | None, job: Job
) -> tuple[str, ...]:
    shared = {
        "records": records.fingerprint(),
        "held_out": None if held_out is None else held_out.fingerprint(),
        "normalisation": (job.mean, job.std),
        "model": job.model,
        "model_args": job.model_args,
        "model_source": source_fingerprint("model", job.model) if is_import_path(job.model) else None,
        "recipe": {field.name: getattr(job.recipe, field.name) for field in fields(job.recipe)},
        "device": job.device,
        "torch": str(torch.__version__),
        "code": code_version(*_TRAINING_CODE),
    }
    return tuple(content_key(train=row, seed=seed, **shared) for row, seed in zip(train, seeds, strict=True))


def _statistics_backend(job: Job) -> str | None:
    """The implementation that reduces logits: another one may round the last bit differently."""
    logits = torch.zeros(1, 1, job.num_classes, dtype=torch.float64, device=job.device)
    labels = torch.zeros(1, 1, dtype=torch.int64, device=job.device)
    return explain("logit_stats", logits, labels).chosen


def _model_seed(seed: int, cohort: str, model: int) -> int:
    return int(content_key(seed=seed, cohort=cohort, model=model)[:15], 16)
