"""From a config to work: everything that can be refused is refused here, before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from fastmem.attacks import Attack, make_attack
from fastmem.data import Dataset, load_dataset, make_design
from fastmem.data.designs import split_records
from fastmem.defenses import eligible_weights, make_loss
from fastmem.defenses.private import require_opacus
from fastmem.defenses.tuning import require_recipe
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError
from fastmem.imports import is_import_path
from fastmem.models import build_model, count_parameters
from fastmem.studies.device import choose_device
from fastmem.studies.options import plain
from fastmem.studies.rewind.arms import SCORED_IN_REPORT, make_arms
from fastmem.studies.rewind.config import RewindConfig
from fastmem.studies.rewind.job import Cohort, Job
from fastmem.studies.rewind.own import Own, read_own, split_own
from fastmem.studies.rewind.task import train_states

__all__ = ["RewindPlan", "make_plan", "try_training", "with_alpha"]

_TRAINING_CODE = ("data/transforms.py", "data/dataset.py", "models", "ops", "training", "studies/rewind/task.py")
_REPAIR_CODE = ("data", "defenses", "models", "ops", "signals", "training", "studies/rewind/task.py")
_ENTANGLE_CODE = (*_REPAIR_CODE, "metrics/entanglement.py", "studies/rewind/entangle.py", "studies/rewind/arms.py")
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]
_REFERENCE, _VALIDATION = 1000, 1000
# About a second of arithmetic on one core; packs of small perceptrons are trained together.
_TASK_OPERATIONS = 2e10
_LARGEST_PACK = 8


@dataclass(frozen=True, eq=False)
class RewindPlan:
    """A rewinding study, ready to run.

    Args:
        config: The config with its defaults resolved.
        dataset: All records.
        index: Record numbers of ``pool``, ``reference``, ``validation`` and ``test``.
        attacks: The attacks.
        job: What the tasks share.
        workers: Processes.
        parameters: Trainable values of one model.
        eligible: How many of them may be rewound.
        dense: Whether all of them are in linear layers.
    """

    config: RewindConfig
    dataset: Dataset
    index: dict[str, np.ndarray]
    attacks: tuple[Attack, ...]
    job: Job
    workers: int
    parameters: int
    eligible: int
    dense: bool

    @property
    def rows_per_task(self) -> int:
        """Models that a training task trains: one, but for perceptrons so small that some of them take a second or so."""
        if not self.dense:
            return 1
        operations = 6 * self.parameters * self.job.pool / 2 * self.config.recipe.epochs
        return int(np.clip(_TASK_OPERATIONS / operations, 1, _LARGEST_PACK))


def make_plan(config: RewindConfig) -> RewindPlan:
    """Loads the data and checks everything that can be checked before training.

    Raises:
        InputError: If a name is unknown, sizes do not fit, or the model, its initial weights or its members do not.
        StoreError: If a file is missing or damaged.
    """
    device = choose_device(config.device)
    dataset = load_dataset(config.data, config.data_root)
    own = read_own(config, dataset)
    index = _split(config, dataset) if own is None else split_own(own, config, dataset)
    config = _resolved(config, dataset, index, own)
    attacks = _attacks(config)
    if config.method_keys == ("none",):
        raise InputError("methods", "none alone", "name at least one to compare with it")
    for arm in make_arms(config):
        options = {name: value for name, value in arm.loss[1].items() if value is not None}
        make_loss(arm.loss[0], **options)
        if arm.private:
            require_opacus()
    require_recipe(config.tuning, config.batch_norm)
    model = build_model(config.model, dataset.input_shape, dataset.num_classes, 0, **config.model_args)
    job = _with_training_keys(_job(config, dataset, index, own, device), dataset)
    return RewindPlan(
        config,
        dataset,
        index,
        attacks,
        job,
        config.workers or (1 if device == "cuda" else joblib.cpu_count()),
        count_parameters(model),
        sum(
            dict(model.named_parameters())[name].numel()
            for name in eligible_weights(model, config.norms, config.biases)
        ),
        all(isinstance(module, nn.Linear) or not list(module.parameters(recurse=False)) for module in model.modules()),
    )


def with_alpha(plan: RewindPlan, loss: float) -> RewindPlan:
    """The plan with its arms and the keys of all rows.

    Args:
        plan: From :func:`make_plan`.
        loss: Of the first trained model on the validation records, which RelaxLoss keeps unless the config says another.
    """
    config = plan.config
    if config.relax_alpha is None:
        # Two digits are enough, and do not hang on the last bit of a sum.
        config = replace(config, relax_alpha=float(f"{max(loss, 1e-3):.2g}"))
    job = _with_arm_keys(replace(plan.job, config=config, arms=make_arms(config)))
    return replace(plan, config=config, job=job)


def try_training(plan: RewindPlan) -> None:
    """Trains one model on a single batch and forgets it: what cannot be trained shows before anything is written.

    Raises:
        InputError: If the recipe does not fit the records, the network or the device.
    """
    job, recipe = plan.job, plan.config.recipe
    short = replace(
        recipe, epochs=1, schedule="constant", milestones=(), warmup_epochs=0.0, stop_at_train_accuracy=None
    )
    first = np.zeros((1, len(job.x)), bool)
    first[0, : min(recipe.batch_size, job.pool)] = True
    train_states(replace(job, seeds=(0,)), short, (0,), first)


def _split(config: RewindConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    """Four disjoint sets; bystanders of the general split are reference and validation here."""
    known = [size for size in (config.reference_size, config.validation) if size is not None]
    bystanders = sum(known) if len(known) == 2 else None
    split = split_records(dataset, config.pool, config.test, bystanders, config.seed)
    rest = split.bystander_index
    reference = config.reference_size or min(_REFERENCE, max(1, (len(rest) - (config.validation or 0)) * 3 // 5))
    validation = config.validation or min(_VALIDATION, len(rest) - reference)
    if validation < 1 or reference + validation > len(rest) or len(split.population_index) < 2:
        raise InputError(
            "reference_size, validation, test",
            f"{len(rest)} records for reference and validation, {len(split.population_index)} for test",
            "give a smaller --pool, or smaller sets",
        )
    return {
        "pool": split.pool_index,
        "reference": rest[:reference],
        "validation": rest[reference : reference + validation],
        "test": split.population_index,
    }


def _resolved(config: RewindConfig, dataset: Dataset, index: dict[str, np.ndarray], own: Own | None) -> RewindConfig:
    """The config with every default that depends on the data filled in."""
    model_args = dict(config.model_args)
    small = int(np.prod(dataset.input_shape)) <= _FEW_INPUTS
    if own is None and config.model == "mlp" and "hidden" not in model_args and small:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    sizes = {name: len(rows) for name, rows in index.items()}
    changes: dict[str, Any] = {}
    if own is not None:
        # The early-stopping cohort would train a model of its own in the place of the user's.
        changes["methods"] = tuple(key for key in config.method_keys if key != "early_stopping")
        changes["fractions"] = tuple(sorted({*config.fractions, config.control_fraction}))
        if "cwrf" not in changes["methods"]:
            raise InputError("methods", "without cwrf for a checkpoint", "add cwrf: it makes the repaired checkpoint")
    return replace(
        config,
        pool=sizes["pool"],
        reference_size=sizes["reference"],
        validation=sizes["validation"],
        test=sizes["test"],
        model_args=model_args,
        entangled=min(config.entangled, max(1, config.num_models)),
        **changes,
    )


def _attacks(config: RewindConfig) -> tuple[Attack, ...]:
    attacks = tuple(make_attack(key) for key in config.attack_keys)
    if config.num_models:
        # Beside the target itself, two models that saw a record and two that did not: else there is no spread.
        least = 6 if config.checkpoint is None else 4
        needy = next((attack.key for attack in attacks if attack.needs_references), None)
        if needy is not None and config.num_models < least:
            raise InputError(
                "num_models", f"{config.num_models}, but {needy} compares with others", f"give at least {least}"
            )
        return attacks
    alone = tuple(attack for attack in attacks if not attack.needs_references)
    if not alone:
        raise InputError("attacks", f"{config.attacks} without shadow models", "add loss, or --num-models")
    return alone


def _job(
    config: RewindConfig,
    dataset: Dataset,
    index: dict[str, np.ndarray],
    own: Own | None,
    device: str,
) -> Job:
    pool, reference, validation, test = (_take(dataset, index[n]) for n in ("pool", "reference", "validation", "test"))
    if config.num_models:
        keep = make_design("rank", config.num_models, len(pool[0]), config.seed)
    else:
        keep = np.zeros((0, len(pool[0])), bool)
    if own is not None:
        inside = np.zeros(len(pool[0]), bool)
        known = index["pool"] < len(dataset)
        inside[known] = own.members[index["pool"][known]]
        keep = np.concatenate([inside[None], keep])
    mean, std = _normalisation(config, dataset, pool, own)
    whole = np.zeros((len(keep), len(pool[0]) + len(test[0])), bool)
    whole[:, : len(pool[0])] = keep
    seeds = tuple(int(content_key(seed=config.seed, model=model)[:15], 16) for model in range(len(keep)))
    return Job(
        config=config,
        arms=(),
        cohorts={},
        seeds=seeds,
        arm_keys={},
        entangle_keys=(),
        x=np.concatenate([pool[0], test[0]]),
        y=np.concatenate([pool[1], test[1]]),
        pool=len(pool[0]),
        keep=whole,
        reference_x=reference[0],
        reference_y=reference[1],
        validation_x=validation[0],
        validation_y=validation[1],
        num_classes=dataset.num_classes,
        mean=mean,
        std=std,
        device=device,
        folder=str(config.run_dir),
        given=None if own is None else own.given,
    )


def _normalisation(
    config: RewindConfig, dataset: Dataset, pool: tuple[np.ndarray, np.ndarray], own: Own | None
) -> tuple[np.ndarray, np.ndarray]:
    """That of the pool; for a model of the user's own what was given, else that of the whole data set."""
    if own is None:
        dataset = Dataset("pool", torch.from_numpy(pool[0]), torch.from_numpy(pool[1]), dataset.num_classes)
    mean, std = (part.numpy() for part in dataset.channel_stats())
    if config.input_mean is None or config.input_std is None:
        return mean, std
    for name, values in (("input_mean", config.input_mean), ("input_std", config.input_std)):
        if len(values) != len(mean) or not np.isfinite(values).all() or (name == "input_std" and min(values) <= 0):
            raise InputError(name, f"{list(values)}", f"give {len(mean)} finite numbers, a value a channel or feature")
    return np.array(config.input_mean, mean.dtype), np.array(config.input_std, std.dtype)


def _with_training_keys(job: Job, dataset: Dataset) -> Job:
    config = job.config
    # Hashed once: what all models have in common.
    training = content_key(
        records=(job.x[: job.pool], job.y[: job.pool], job.mean, job.std),
        model=config.model,
        model_args=config.model_args,
        model_source=source_fingerprint("model", config.model) if is_import_path(config.model) else None,
        classes=dataset.num_classes,
        device=job.device,
        torch=str(torch.__version__),
        code=code_version(*_TRAINING_CODE),
    )
    watched = content_key(x=job.validation_x, y=job.validation_y)
    recipes = {"none": config.recipe}
    if "early_stopping" in config.method_keys:
        recipes["early_stopping"] = replace(config.longer, patience=config.patience)
    cohorts = {}
    for name, recipe in recipes.items():
        shared = {"training": training, "recipe": plain(recipe), "watched": watched if recipe.patience else None}
        keys = [content_key(keep=row, seed=seed, **shared) for row, seed in zip(job.keep, job.seeds, strict=True)]
        if job.given is not None:
            keys[0] = content_key(given=job.given, **shared)
        cohorts[name] = Cohort(name, recipe, tuple(keys))
    return replace(job, cohorts=cohorts)


def _with_arm_keys(job: Job) -> Job:
    config = job.config
    asked = content_key(
        x=job.x,
        y=job.y,
        reference=(job.reference_x, job.reference_y),
        batch=job.query_batch,
        code=code_version(*_REPAIR_CODE),
    )
    scoring = [getattr(config, name) for name in _SCORING]
    tuning = [plain(config.tuning), plain(config.longer), config.batch_norm, config.noise, config.clip]
    arm_keys = {
        arm.key: tuple(
            content_key(
                model=job.cohorts["early_stopping" if arm.start == "stopped" else "none"].keys[row],
                seed=seed,
                asked=asked,
                arm=plain(arm),
                scoring=scoring if arm.score else None,
                tuning=tuning if arm.variant else None,
            )
            for row, seed in enumerate(job.seeds)
        )
        for arm in job.arms
    }
    shared = {
        "asked": asked,
        "scoring": scoring,
        "fractions": [config.fractions, config.control_fraction],
        "scores": SCORED_IN_REPORT,
        "code": code_version(*_ENTANGLE_CODE),
    }
    bases = job.cohorts["none"].keys[: config.entangled]
    entangle = tuple(content_key(model=key, seed=job.seeds[row], **shared) for row, key in enumerate(bases))
    return replace(job, arm_keys=arm_keys, entangle_keys=entangle)


_SCORING = ("mix", "score_steps", "score_learning_rate", "kl_direction", "scope", "norms", "biases")


def _take(dataset: Dataset, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Records and labels, in the order of their numbers; from ``len(dataset)`` on those of the test split."""
    x, y = dataset.x, dataset.y
    if dataset.test is not None:
        # Not concatenated first: that would copy the whole data set.
        inside, outside = index[index < len(dataset)], index[index >= len(dataset)] - len(dataset)
        order = np.argsort(
            np.concatenate([np.flatnonzero(index < len(dataset)), np.flatnonzero(index >= len(dataset))])
        )
        x = torch.cat([x[inside], dataset.test.x[outside]])[order]
        y = torch.cat([y[inside], dataset.test.y[outside]])[order]
        return x.numpy(), y.numpy()
    return x[index].numpy(), y[index].numpy()
