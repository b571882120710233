"""Who trains on what, is asked what, and under which content key: everything that decides a row enters its key.

The key of a trained model holds its records, its mask row, the network and its source, the recipe, the seed, the device
and the code; the key of a row of answers adds what the model is asked. So another statistic asks saved models again,
and trains none.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch

from fastmem.data import Dataset, Split, make_design, make_queries
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError
from fastmem.imports import is_import_path
from fastmem.ops import explain
from fastmem.studies.audit.config import AuditConfig
from fastmem.studies.audit.job import Cohort, Job, Table
from fastmem.studies.audit.target import Target

__all__ = ["make_cohorts"]

_TRAINING_CODE = ("data", "models", "ops", "training", "studies/audit/task.py")
_QUERY_CODE = ("data", "ops", "signals", "studies/audit/task.py")


def make_cohorts(config: AuditConfig, split: Split, job: Job, target: Target | None = None) -> dict[str, Cohort]:
    """The shadow models and, where asked for, the null models, by name.

    Args:
        config: The config, resolved.
        split: The records.
        job: Everything else; its ``cohorts`` are not looked at.
        target: A model of the user's own, which becomes the last one of the shadow models.
    """
    design, seed = config.design, config.seed
    keep = make_design(design, config.num_models, len(split.pool), seed)
    if target is not None:
        in_train = split.pool_index < len(target.members)
        members = in_train & target.members[np.where(in_train, split.pool_index, 0)]
        keep = np.concatenate([keep, members[None]])
    cohorts = [_cohort("shadow", "", split.pool, keep, keep, config, split, job, target)]
    if config.null_models and split.bystanders is not None:
        rng = np.random.default_rng([seed, 1])
        shape = (config.null_models, len(split.bystanders))
        # As many records as an audited model trains on, where there are that many.
        size = min(len(split.pool) // 2, shape[1])
        train = rng.permuted(np.tile(np.arange(shape[1]) < size, (shape[0], 1)), axis=1)
        claimed = make_design(design, config.null_models, len(split.pool), seed + 1)
        cohorts.append(_cohort("null", "null", split.bystanders, train, claimed, config, split, job))
    return {cohort.name: cohort for cohort in cohorts}


def _cohort(
    name: str,
    group: str,
    records: Dataset,
    train: np.ndarray,
    keep: np.ndarray,
    config: AuditConfig,
    split: Split,
    job: Job,
    target: Target | None = None,
) -> Cohort:
    seeds = tuple(_model_seed(config.seed, name, model) for model in range(len(train)))
    held_out = _held_out(config, split, name)
    given = None if target is None else len(train) - 1
    keys = _training_keys(records, train[:given], seeds[:given], held_out, job)
    if target is not None:
        keys = (*keys, content_key(given=target.sha256, **_network(job)))
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
        given=given,
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
        "batch": job.query_batch,
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
        **_network(job),
        "recipe": {field.name: getattr(job.recipe, field.name) for field in fields(job.recipe)},
        "device": job.device,
        "torch": str(torch.__version__),
        "code": code_version(*_TRAINING_CODE),
    }
    return tuple(content_key(train=row, seed=seed, **shared) for row, seed in zip(train, seeds, strict=True))


def _network(job: Job) -> dict[str, Any]:
    return {
        "model": job.model,
        "model_args": job.model_args,
        "model_source": source_fingerprint("model", job.model) if is_import_path(job.model) else None,
    }


def _statistics_backend(job: Job) -> str | None:
    """The implementation that reduces logits: another one may round the last bit differently."""
    logits = torch.zeros(1, 1, job.num_classes, dtype=torch.float64, device=job.device)
    labels = torch.zeros(1, 1, dtype=torch.int64, device=job.device)
    return explain("logit_stats", logits, labels).chosen


def _model_seed(seed: int, cohort: str, model: int) -> int:
    return int(content_key(seed=seed, cohort=cohort, model=model)[:15], 16)
