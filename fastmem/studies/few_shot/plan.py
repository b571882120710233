"""From a config to work: everything that can be refused is refused here, before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from fastmem.attacks.membership.few_shot import METHODS, draw_episodes
from fastmem.attacks.membership.few_shot.episodes import check_features
from fastmem.data import Dataset, load_dataset, make_design, split_records
from fastmem.data.arrays import read_npz
from fastmem.data.designs import split_sizes
from fastmem.data.text import TextBlocks, load_text
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import is_import_path
from fastmem.metrics.arrays import as_bool
from fastmem.models import count_parameters
from fastmem.studies.device import choose_device
from fastmem.studies.few_shot.config import FewShotConfig
from fastmem.studies.few_shot.job import Group, Job
from fastmem.studies.few_shot.task import build, check_layers
from fastmem.training.language import check_language_recipe

__all__ = ["FewShotPlan", "Saved", "make_plan"]

_TRAINING_CODE = ("data", "models", "ops", "training", "studies/few_shot/task.py")
_ASKING_CODE = ("data", "ops", "signals", "studies/few_shot/task.py")
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]
_DEFAULT_BLOCKS = 1200


@dataclass(frozen=True, eq=False)
class Saved:
    """Features that came from a file.

    Args:
        features: float64 [N, d].
        members: bool [N].
        blind: The same records in a model that saw none of them, float64 [N, d], or None.
    """

    features: np.ndarray
    members: np.ndarray
    blind: np.ndarray | None


@dataclass(frozen=True, eq=False)
class FewShotPlan:
    """A few-shot study, ready to run.

    Args:
        config: The config with its defaults resolved.
        layer: The features that are read.
        answers_only: Whether they are made of the model's answers alone.
        keep: Who trained on what, bool [M, N].
        labels: Classes of the pool [N].
        index: Number of each record in the data set [N].
        job: What the training tasks share; None where features came from a file.
        saved: What came from a file, or None.
        compressed: zlib sizes of the pool's blocks, for text.
        data: What is said about the data in the summary.
        workers: Processes.
        parameters: Trainable values of one model.
    """

    config: FewShotConfig
    layer: str
    answers_only: bool
    keep: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    job: Job | None
    saved: Saved | None
    compressed: np.ndarray | None
    data: dict[str, Any]
    workers: int
    parameters: int

    @property
    def num_models(self) -> int:
        """All models to train."""
        return 0 if self.job is None else sum(len(group.seeds) for group in self.job.groups.values())

    def episodes_of(self, method: str) -> int:
        """Episodes of a method, over all targets."""
        return self.config.whole_episodes if METHODS[method].white_box else self.config.episodes


def make_plan(config: FewShotConfig) -> FewShotPlan:
    """Loads the data and checks everything that can be checked before training.

    Args:
        config: What to do.

    Raises:
        InputError: If a name is unknown, sizes do not fit, a file cannot be used, or there are too few records for the
            shots asked for.
    """
    _check_variants(config)
    config = replace(config, finetune_episodes=config.whole_episodes)
    if config.from_file:
        plan = _plan_of_file(config)
    elif config.task == "text":
        plan = _plan_of_text(config)
    else:
        plan = _plan_of_images(config)
    for target in range(config.targets):
        for shots in config.shot_counts:
            draw_episodes(plan.keep[target], shots, config.n_val, config.n_query, 1)
    return plan


def _check_variants(config: FewShotConfig) -> None:
    if not config.variant_keys:
        raise InputError("variants", "none given", f"name some of {', '.join(METHODS)}")
    for key in config.variant_keys:
        if key not in METHODS:
            raise UnknownNameError("variants", key, METHODS)
        if METHODS[key].white_box and config.from_file:
            raise InputError(
                "variants", f"{key} on saved features", "it trains copies of a network; take finetune_head"
            )


def _plan_of_file(config: FewShotConfig) -> FewShotPlan:
    found = read_npz(Path(config.features).expanduser(), ("features", "members", "blind"))
    for name in ("features", "members"):
        if name not in found:
            held = ", ".join(found) or "none of them"
            raise InputError(
                "features", f"{config.features!r} holds {held}", "it needs features [N, d] and members [N]"
            )
    features, members = check_features("features", found["features"]), as_bool("members", found["members"])
    if members.shape != (len(features),):
        raise InputError("members", f"shape {list(members.shape)}", f"give [{len(features)}], one a record")
    blind = found.get("blind")
    if blind is not None:
        blind = check_features("blind", blind)
        if len(blind) != len(features):
            raise InputError("blind", f"{len(blind)} records for {len(features)}", "give the same records")
    config = replace(config, pool=len(features), population=0, bystanders=0, targets=1)
    return FewShotPlan(
        config=config,
        layer="saved features",
        answers_only=False,
        keep=members[None],
        labels=np.zeros(len(features), dtype=np.int64),
        index=np.arange(len(features)),
        job=None,
        saved=Saved(features, members, blind),
        compressed=None,
        data={"name": config.subject, "fingerprint": content_key(features=features, members=members)},
        workers=config.workers or joblib.cpu_count(),
        parameters=0,
    )


def _plan_of_images(config: FewShotConfig) -> FewShotPlan:
    device = choose_device(config.device)
    dataset = load_dataset(config.data, config.data_root)
    split = split_records(dataset, config.pool, config.population, config.bystanders, config.seed)
    model_args = dict(config.model_args)
    if config.model == "mlp" and "hidden" not in model_args and split.pool.x[0].numel() <= _FEW_INPUTS:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    layer = "penultimate" if config.features == "auto" else config.features
    config = _sized(config, len(split.pool_index), len(split.population_index), len(split.bystander_index))
    config = replace(config, model_args=model_args)
    mean, std = split.pool.channel_stats()
    nothing = split.pool.x[:0]
    population = split.population
    job = Job(
        groups=_groups(config, split.pool, split.bystanders),
        pool=split.pool.x.numpy(),
        pool_labels=split.pool.y.numpy(),
        population=(nothing if population is None else population.x).numpy(),
        population_labels=(split.pool.y[:0] if population is None else population.y).numpy(),
        language=None,
        vocabulary=0,
        model=config.model,
        model_args=model_args,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        mean=mean.numpy(),
        std=std.numpy(),
        recipe=config.recipe,
        layers=(layer,),
        device=device,
        folder=str(config.run_dir),
    )
    check_layers(job, job.layers)
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "num_classes": dataset.num_classes,
        "input_shape": list(dataset.input_shape),
    }
    return _finished(config, job, layer, layer == "logits", split.pool_index, None, data)


def _plan_of_text(config: FewShotConfig) -> FewShotPlan:
    assert config.text is not None, "the config has checked that there is one"
    device = choose_device(config.device)
    check_language_recipe(config.text_recipe)
    shape = config.language
    blocks = load_text(config.text, shape.block, shape.vocabulary, shape.tokenizer)
    wanted = config.pool
    if wanted is None:
        wanted = min(len(blocks) * 4 // 7 // 2 * 2, _DEFAULT_BLOCKS)
    sizes = split_sizes(blocks.name, len(blocks), 0, wanted, config.population, config.bystanders)
    order = np.random.default_rng(config.seed).permutation(len(blocks))
    pool, population, bystanders = np.split(order[: sum(sizes)], np.cumsum([sizes[0], sizes[1]]))
    config = _sized(config, *sizes)
    layer = "statistics" if config.features == "auto" else config.features
    zeros = np.zeros(len(blocks), dtype=np.int64)
    job = Job(
        groups=_groups(config, blocks.take(pool), blocks.take(bystanders) if len(bystanders) else None),
        pool=blocks.tokens.numpy()[pool],
        pool_labels=zeros[pool],
        population=blocks.tokens.numpy()[population],
        population_labels=zeros[population],
        language=shape,
        vocabulary=blocks.vocabulary,
        model="gpt2",
        model_args={},
        input_shape=(shape.block,),
        num_classes=blocks.vocabulary,
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
        recipe=config.text_recipe,
        layers=(layer,),
        device=device,
        folder=str(config.run_dir),
    )
    if layer != "statistics":
        check_layers(job, job.layers)
    data = {
        "name": blocks.name,
        "fingerprint": blocks.fingerprint(),
        "vocabulary": blocks.vocabulary,
        "input_shape": [shape.block],
    }
    return _finished(config, job, layer, layer in ("statistics", "logits"), pool, blocks.compressed[pool], data)


def _sized(config: FewShotConfig, pool: int, population: int, bystanders: int) -> FewShotConfig:
    return replace(config, pool=pool, population=population, bystanders=bystanders, num_models=config.models)


def _groups(
    config: FewShotConfig, pool: Dataset | TextBlocks, bystanders: Dataset | TextBlocks | None
) -> dict[str, Group]:
    # One model is the first of two, which have complementary halves.
    keep = make_design("rank", max(2, config.models), len(pool), config.seed)[: config.models]
    groups = {"pool": Group(*_arrays(pool), keep, _seeds(config.seed, "pool", config.models), read=config.targets)}
    if bystanders is not None and len(bystanders) >= 2:
        # As many records as a target trains on, where there are that many.
        train = np.arange(len(bystanders))[None] < max(2, len(pool) // 2)
        groups["blind"] = Group(*_arrays(bystanders), train, _seeds(config.seed, "blind", 1), read=1)
    return groups


def _arrays(records: Dataset | TextBlocks) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(records, TextBlocks):
        return records.tokens.numpy(), np.zeros(len(records), dtype=np.int64)
    return records.x.numpy(), records.y.numpy()


def _seeds(seed: int, group: str, count: int) -> tuple[int, ...]:
    return tuple(int(content_key(seed=seed, group=group, model=model)[:15], 16) for model in range(count))


def _finished(
    config: FewShotConfig,
    job: Job,
    layer: str,
    answers_only: bool,
    index: np.ndarray,
    compressed: np.ndarray | None,
    data: dict[str, Any],
) -> FewShotPlan:
    job = replace(job, groups={name: _keyed(job, group) for name, group in job.groups.items()})
    return FewShotPlan(
        config=config,
        layer=layer,
        answers_only=answers_only,
        keep=job.groups["pool"].train,
        labels=job.pool_labels,
        index=index,
        job=job,
        saved=None,
        compressed=compressed,
        data=data,
        workers=config.workers or (1 if job.device == "cuda" else joblib.cpu_count()),
        parameters=count_parameters(build(job, 0)),
    )


def _keyed(job: Job, group: Group) -> Group:
    """The group with the keys of its models, and of what they are asked."""
    shape = (
        None
        if job.language is None
        else {field.name: getattr(job.language, field.name) for field in fields(job.language)}
    )
    shared = {
        "records": group.x,
        "labels": group.y,
        "normalisation": (job.mean, job.std),
        "language": shape,
        "weights": None if job.language is None or job.language.init is None else _file_key(job.language.init),
        "model": job.model,
        "model_args": job.model_args,
        "model_source": source_fingerprint("model", job.model) if is_import_path(job.model) else None,
        "recipe": {field.name: getattr(job.recipe, field.name) for field in fields(job.recipe)},
        "device": job.device,
        "torch": str(torch.__version__),
        "code": code_version(*_TRAINING_CODE),
    }
    common = content_key(**shared)
    keys = tuple(
        content_key(shared=common, train=row, seed=seed) for row, seed in zip(group.train, group.seeds, strict=True)
    )
    asked = content_key(pool=job.pool, population=job.population, code=code_version(*_ASKING_CODE), device=job.device)
    answers = tuple(
        content_key(model=key, asked=asked, layers=job.layers if row < group.read else ())
        for row, key in enumerate(keys)
    )
    return replace(group, keys=keys, answer_keys=answers)


def _file_key(folder: str) -> str:
    return content_key(weights=(Path(folder) / "model.safetensors").read_bytes())
