"""From a config to work: everything that can be refused is refused here, before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
from torch import nn

from fastmem.attacks import ATTACKS, Attack, make_attack
from fastmem.data import Dataset, Split, load_dataset, make_design, make_queries, split_around, split_records
from fastmem.engine import content_key
from fastmem.errors import InputError, UnknownNameError
from fastmem.models import build_model, count_parameters
from fastmem.signals import Signals, stored_names
from fastmem.signals.layout import as_url
from fastmem.studies.audit.cohorts import make_cohorts
from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.audit.job import Job
from fastmem.studies.audit.saved import is_url
from fastmem.studies.audit.shard import Shard
from fastmem.studies.audit.target import Target, read_target
from fastmem.studies.device import choose_device

__all__ = ["AuditPlan", "make_plan"]

# The clean answers' correctness gives the train and test accuracy of every model.
_ALWAYS_STORED = ("margin", "hinge")
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]

# Enough made-up records that an attack which fits a classifier finds both classes in every part of them.
_TRIED_RECORDS = 128

# About a second of arithmetic on one core.
_TASK_OPERATIONS = 2e10
_LARGEST_PACK = 16


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
        target: The model of the user's own under audit, the last row of the tables; None where the shadow models are.
        shard: The part of the models that this process is to do; None for all.
    """

    config: AuditConfig
    dataset: Dataset
    fingerprint: str
    split: Split
    attacks: dict[str, Attack]
    job: Job
    workers: int
    parameters: int
    dense: bool
    target: Target | None = None
    shard: Shard | None = None

    @property
    def key(self) -> str:
        """Hash of all that decides the rows: equal for two plans whose rows may stand in one store."""
        return content_key(
            rows=[table.keys for cohort in self.job.cohorts.values() for table in cohort.tables],
            groups=[table.group for cohort in self.job.cohorts.values() for table in cohort.tables],
        )

    @property
    def own_store(self) -> Path | None:
        """The folder of the store where it is not the run's."""
        place = Path(self.job.store).parent
        own = not is_url(self.job.store) and place != Path(as_url(self.config.run_dir))
        return place if own else None

    @property
    def kept_in(self) -> str:
        """Where the rows are, as messages name it."""
        return str(self.config.store or self.config.run_dir)

    def models(self, cohort: str) -> range:
        """The models of a cohort that this process is to do."""
        count = len(self.job.cohorts[cohort].seeds)
        return range(count) if self.shard is None else self.shard.part_of(count)

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
        """All models to do, the audited ones and the controls."""
        return sum(len(self.models(cohort)) for cohort in self.job.cohorts)

    @property
    def num_queries(self) -> int:
        """A, how many views of a record the models are shown."""
        return len(make_queries(self.config.queries))

    @property
    def targets(self) -> range:
        """The models under attack."""
        if self.target is not None:
            return range(self.config.num_models, self.config.num_models + 1)
        return range(self.config.targets or self.config.num_models)


def make_plan(config: AuditConfig) -> AuditPlan:
    """Loads the data and checks everything that can be checked before training.

    Args:
        config: What to do.

    Raises:
        InputError: If a name is unknown, sizes do not fit, or an attack cannot work with so few models.
    """
    device = choose_device(config.device)
    attacks = _attacks(config)
    dataset = load_dataset(config.data, config.data_root)
    config = _with_network(config, dataset)
    model = build_model(config.model, dataset.input_shape, dataset.num_classes, 0, **config.model_args)
    target, sizes = None, (config.pool, config.population, config.bystanders, config.seed)
    if config.checkpoint is not None and config.members is not None:
        target = read_target(config.checkpoint, config.members, len(dataset), model)
        split = split_around(dataset, target.members, *sizes)
    else:
        split = split_records(dataset, *sizes)
    config = _with_sizes(config, split)
    attacks = _possible(attacks, config)
    make_queries(config.queries, dataset.input_shape)
    required = [stat for attack in attacks.values() for stat in attack.required_stats]
    mean, std = _normalisation(config, split)
    store = as_url(config.store or config.run_dir).rstrip("/")
    job = Job(
        cohorts={},
        model=config.model,
        model_args=config.model_args,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        mean=mean,
        std=std,
        recipe=config.recipe,
        queries=config.queries,
        stats=stored_names([*_ALWAYS_STORED, *required]),
        save_logits=config.save_logits,
        device=device,
        store=f"{store}/signals.zarr",
        models=f"{store}/models",
    )
    job = replace(job, cohorts=make_cohorts(config, split, job, target))
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
        target,
    )


def _attacks(config: AuditConfig) -> dict[str, Attack]:
    keys = tuple(ATTACKS) if config.attack_keys == ("all",) else config.attack_keys
    if not keys:
        raise InputError("attacks", "none given", f"name some of {', '.join(ATTACKS)}, or all")
    for key in keys:
        if key not in ATTACKS:
            raise UnknownNameError("attacks", key, [*ATTACKS, "all"])
    return {key: make_attack(key) for key in keys}


def _with_network(config: AuditConfig, dataset: Dataset) -> AuditConfig:
    """The config with the default width of the network filled in."""
    model_args = dict(config.model_args)
    if config.model == "mlp" and "hidden" not in model_args and dataset.x[0].numel() <= _FEW_INPUTS:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    return replace(config, model_args=model_args)


def _with_sizes(config: AuditConfig, split: Split) -> AuditConfig:
    """The config with the sizes of the sets that were drawn filled in."""
    bystanders = len(split.bystander_index)
    return replace(
        config,
        pool=len(split.pool_index),
        population=len(split.population_index),
        bystanders=bystanders,
        null_models=config.null_models if bystanders else 0,
    )


def _normalisation(config: AuditConfig, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoint's own where it is given, else that of the pool."""
    mean, std = (part.numpy() for part in split.pool.channel_stats())
    if config.input_mean is None or config.input_std is None:
        return mean, std
    for name, values in (("input_mean", config.input_mean), ("input_std", config.input_std)):
        if len(values) != len(mean) or not np.isfinite(values).all() or (name == "input_std" and min(values) <= 0):
            raise InputError(name, f"{list(values)}", f"give {len(mean)} finite numbers, a value a channel or feature")
    return np.array(config.input_mean, dtype=mean.dtype), np.array(config.input_std, dtype=std.dtype)


def _possible(attacks: dict[str, Attack], config: AuditConfig) -> dict[str, Attack]:
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
        pool, population = (_made_up(mask, rng) for mask in (keep, np.zeros_like(keep)))
        for key, attack in attacks.items():
            try:
                attack(pool, targets=[0], population=population if attack.needs_population else None)
            except InputError as error:
                raise InputError(
                    argument, f"{count}, but {key} cannot work with that ({error.problem})", error.remedy
                ) from error
    return attacks


def _made_up(keep: np.ndarray, rng: np.random.Generator) -> Signals:
    logits = rng.normal(size=(*keep.shape, 1, 3))
    return Signals(labels=np.arange(keep.shape[1]) % 3, keep=keep, logits=logits)
