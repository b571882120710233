"""From a config to work: everything that can be refused is refused here, before anything is trained or written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import joblib
import numpy as np
import torch

from fastmem.data import (
    Dataset,
    EvaluationImages,
    Split,
    UniqueFeature,
    evaluation_images,
    load_dataset,
    random_patches,
    split_records,
)
from fastmem.data.features import ControlFeatures, load_feature
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import is_import_path
from fastmem.metrics import LABEL_VARIANTS, VARIANTS, nulls_needed
from fastmem.models import build_model, count_parameters
from fastmem.ops import explain
from fastmem.studies.canary.config import CanaryConfig
from fastmem.studies.canary.job import Cohort, Job, Member
from fastmem.studies.canary.regularisers import Training, training_of
from fastmem.studies.device import choose_device

__all__ = ["CanaryPlan", "bytes_on_disk", "make_plan"]

_SMALL_IMAGE = 16
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]

# About a second of arithmetic on one core.
_TASK_OPERATIONS = 2e10
_LARGEST_PACK = 16

_TRAINING_CODE = ("data", "models", "ops", "training", "studies/canary/task.py")
_SCORE_CODE = ("data", "ops", "signals", "metrics", "studies/canary/task.py")


@dataclass(frozen=True, eq=False)
class CanaryPlan:
    """A canary study, ready to run.

    Args:
        config: The config with its defaults resolved.
        dataset: All records.
        split: Which are in the pool, held out (the population) and watched by early stopping (the bystanders).
        evaluation: Images to score on.
        job: What the tasks share.
        workers: Processes.
        parameters: Trainable values of one model.
    """

    config: CanaryConfig
    dataset: Dataset
    split: Split
    evaluation: EvaluationImages
    job: Job
    workers: int
    parameters: int

    @property
    def rows_per_task(self) -> int:
        """Models that a task trains: as many small ones as take a second or so, else one."""
        epochs = self.config.recipe.epochs
        operations = 6 * self.parameters * self.job.pool * epochs
        return int(np.clip(_TASK_OPERATIONS / operations, 1, _LARGEST_PACK)) if self.config.model == "mlp" else 1

    @property
    def num_rows(self) -> int:
        """All models to train."""
        return sum(len(cohort.members) for cohort in self.job.cohorts.values())

    @property
    def feature(self) -> UniqueFeature:
        """The mark."""
        return self.job.features[0]


def make_plan(config: CanaryConfig) -> CanaryPlan:
    """Loads the data and checks everything that can be checked before training.

    Args:
        config: What to do.

    Raises:
        InputError: If a name is unknown, the mark does not fit the images, sizes do not fit, or the null models are too
            few for the level.
    """
    device = choose_device(config.device)
    if config.nulls < nulls_needed(config.level):
        raise InputError(
            "nulls",
            f"{config.nulls}, so that no p-value can reach the level {config.level:g}",
            f"give at least {nulls_needed(config.level)}, or a larger --level",
        )
    variants = _variants(config)
    dataset = load_dataset(config.data, config.data_root)
    if not dataset.is_image:
        raise InputError("data", f"{dataset.name} has samples of shape {list(dataset.input_shape)}", "give images")
    split = split_records(dataset, config.pool, config.held_out, config.validation, config.seed)
    if split.population is None:
        raise InputError("held_out", "0 records", "give some, to measure accuracy on")
    features = _features(config, dataset.input_shape)
    config = _resolved(config, split, features)
    trainings = _trainings(config, dataset)
    watching = any(training.recipe.patience is not None for training in trainings)
    if watching and split.bystanders is None:
        raise InputError("validation", "0 records, but early stopping watches some", "give some")
    marks = _marks(config, split.pool)
    images = evaluation_images(config.evaluation, split.population, config.images, config.seed, config.data_root)
    x, y = _training_records(split.pool, features[0], marks)
    mean, std = split.pool.channel_stats()
    job = Job(
        cohorts={},
        x=x,
        y=y,
        pool=len(split.pool),
        marks=marks,
        held_out=(split.population.x.numpy(), split.population.y.numpy()),
        validation=(split.bystanders.x.numpy(), split.bystanders.y.numpy())
        if watching and split.bystanders is not None
        else None,
        evaluation=images.x.numpy(),
        patched=features[0].apply(images.x, random_patches(features[0], len(images.x), config.seed)).numpy(),
        features=features,
        variants=variants,
        labels=_labels(config, split.pool, marks),
        model=config.model,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        mean=mean.numpy(),
        std=std.numpy(),
        device=device,
        save_models=config.save_models,
        folder=str(config.run_dir),
    )
    cohorts = {training.name: _cohort(config, training, job) for training in trainings}
    model = build_model(config.model, dataset.input_shape, dataset.num_classes, 0, **trainings[0].model_args)
    return CanaryPlan(
        config,
        dataset,
        split,
        images,
        replace(job, cohorts=cohorts),
        config.workers or (1 if device == "cuda" else joblib.cpu_count()),
        count_parameters(model),
    )


def _variants(config: CanaryConfig) -> tuple[str, ...]:
    wanted = config.variant_keys
    if wanted == ("every",):
        known = config.own_model is None or config.label is not None
        return tuple(name for name in VARIANTS if known or name not in LABEL_VARIANTS)
    if not wanted:
        raise InputError("variants", "none given", f"name some of {', '.join(VARIANTS)}, or every")
    for name in wanted:
        if name not in VARIANTS:
            raise UnknownNameError("variants", name, [*VARIANTS, "every"])
        if name in LABEL_VARIANTS and config.own_model is not None and config.label is None:
            raise InputError("label", f"none, but {name} needs it", "give the canary's label, or take kl_contrast")
    return wanted


def _features(config: CanaryConfig, input_shape: tuple[int, ...]) -> tuple[UniqueFeature, ...]:
    """The mark and its controls."""
    source = config.feature
    if source == "auto":
        source = "A3" if min(input_shape[1:]) < _SMALL_IMAGE else "A"
    offset = (config.offset[0], config.offset[1]) if len(config.offset) == 2 else config.offset
    feature = load_feature(source, offset=offset, mode=config.mode)
    feature.check(input_shape)
    kinds = ("mirror", "permuted") if config.control_kind == "auto" else (config.control_kind,)
    for place, kind in enumerate(kinds):
        try:
            return (feature, *ControlFeatures(kind, config.controls, config.seed).like(feature))
        except UnknownNameError:
            raise
        except InputError:
            if place == len(kinds) - 1:
                raise
    raise AssertionError("the last kind returns or raises")


def _resolved(config: CanaryConfig, split: Split, features: tuple[UniqueFeature, ...]) -> CanaryConfig:
    """The config with every default that depends on the data filled in."""
    model_args = dict(config.model_args)
    if config.model == "mlp" and "hidden" not in model_args and split.pool.x[0].numel() <= _FEW_INPUTS:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    return replace(
        config,
        pool=len(split.pool_index),
        held_out=len(split.population_index),
        validation=len(split.bystander_index),
        feature=config.feature if config.feature != "auto" else features[0].name,
        model_args=model_args,
        canaries=len(config.records) or min(config.canaries, config.nulls),
    )


def _trainings(config: CanaryConfig, dataset: Dataset) -> list[Training]:
    if not config.regularisers:
        raise InputError("regularise", "none given", "name some variants, or none for plain training")
    return [
        training_of(name, config.model, config.model_args, config.recipe, dataset.input_shape, dataset.num_classes)
        for name in config.regularisers
    ]


def _marks(config: CanaryConfig, pool: Dataset) -> np.ndarray:
    """The records that carry the mark: for each canary its own and then others of its class, int64 [J, most copies]."""
    if config.own_model is not None:
        return np.zeros((1, 0), dtype=np.int64)
    for record in config.records:
        if not 0 <= record < len(pool):
            raise InputError("records", f"{record}", f"the pool has records 0 to {len(pool) - 1}")
    if len(set(config.records)) < len(config.records):
        raise InputError("records", f"{list(config.records)}", "give different records")
    if len(config.records) > config.nulls:
        raise InputError("records", f"{len(config.records)} canaries for {config.nulls} pairs", "raise --nulls")
    most, labels = max(config.copy_counts), pool.y.numpy()
    rng = np.random.default_rng([config.seed, 10])
    drawn = rng.permutation(len(pool))
    chosen = list(config.records) or _drawn_canaries(drawn, labels, config.canaries, most)
    marks = []
    for record in chosen:
        others = drawn[(labels[drawn] == labels[record]) & (drawn != record)]
        if len(others) + 1 < most:
            raise InputError(
                "copies",
                f"{most} records of class {labels[record]}, of which the pool has {len(others) + 1}",
                "give less, or a larger --pool",
            )
        marks.append([record, *rng.permutation(others)[: most - 1]])
    return np.array(marks, dtype=np.int64)


def _drawn_canaries(drawn: np.ndarray, labels: np.ndarray, count: int, copies: int) -> list[int]:
    """The first drawn records whose class has as many records as will carry the mark."""
    sizes = np.bincount(labels)
    fit = [int(record) for record in drawn if sizes[labels[record]] >= copies]
    if len(fit) < count:
        raise InputError(
            "copies",
            f"{copies} records of one class, of which the largest has {sizes.max()}"
            if not fit
            else f"{count} canaries, but {len(fit)} records are in classes of {copies}",
            "give less, or a larger --pool",
        )
    return fit[:count]


def _labels(config: CanaryConfig, pool: Dataset, marks: np.ndarray) -> tuple[int | None, ...]:
    if config.own_model is not None:
        if config.label is not None and not 0 <= config.label < pool.num_classes:
            raise InputError("label", f"{config.label}", f"{pool.name} has classes 0 to {pool.num_classes - 1}")
        return (config.label,)
    return tuple(dict.fromkeys(int(label) for label in pool.y.numpy()[marks[:, 0]]))


def _training_records(pool: Dataset, feature: UniqueFeature, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pool and behind it the marked copies, canary by canary."""
    places = torch.from_numpy(marks.reshape(-1))
    marked = feature.apply(pool.x[places])
    return torch.cat([pool.x, marked]).numpy(), torch.cat([pool.y, pool.y[places]]).numpy()


def _cohort(config: CanaryConfig, training: Training, job: Job) -> Cohort:
    members = []
    for copies in (0, *config.copy_counts):
        kind = f"k{copies}" if copies else "null"
        for pair in range(config.nulls):
            # Not of the variant: all of them then share their initial weights and orders too.
            seed = int(content_key(seed=config.seed, pair=pair)[:15], 16)
            name = f"{training.name}-{kind}-{pair:03d}"
            members.append(Member(copies, pair, pair % len(job.marks), seed, name))
    keys = tuple(_training_keys(members, training, job))
    shown = {
        "evaluation": (job.evaluation, job.patched),
        "held_out": job.held_out,
        "features": [(feature.pattern, feature.opacity, feature.offset) for feature in job.features],
        "variants": job.variants,
        "labels": job.labels,
        "batch": job.query_batch,
        "backend": _divergence_backend(job),
        "code": code_version(*_SCORE_CODE),
    }
    common = content_key(**shown)
    return Cohort(training, tuple(members), keys, tuple(content_key(model=key, shown=common) for key in keys))


def _training_keys(members: Iterable[Member], training: Training, job: Job) -> Iterable[str]:
    common = content_key(
        **job.common(),
        validation=job.validation if training.recipe.patience is not None else None,
        model_args=training.model_args,
        model_source=source_fingerprint("model", job.model) if is_import_path(job.model) else None,
        recipe={field.name: getattr(training.recipe, field.name) for field in fields(training.recipe)},
        torch=str(torch.__version__),
        code=code_version(*_TRAINING_CODE),
    )
    for member in members:
        # A null model knows nothing of the mark: another one does not train it again.
        records = job.records(member)
        replaced = np.flatnonzero(records >= job.pool)
        yield content_key(common=common, seed=member.seed, replaced=replaced, marked=job.x[records[replaced]])


def _divergence_backend(job: Job) -> str | None:
    """The implementation of the divergences: another one may round the last bit differently."""
    logits = torch.zeros(len(job.features) + 1, 2, job.num_classes, dtype=torch.float64)
    return explain("kl_div", logits[0], logits).chosen


def bytes_on_disk(plan: CanaryPlan) -> int:
    """The most that the run's folder will hold."""
    job = plan.job
    row = len(job.variants) * len(job.labels) * (len(job.features) + 2) * 8
    state = math.ceil(4.2 * plan.parameters) if job.save_models else 0
    return plan.num_rows * (row + state + (1 << 13)) + (1 << 21)
