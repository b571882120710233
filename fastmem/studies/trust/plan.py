"""From a config to work: everything that can be refused is refused here, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from fastmem.data import Dataset, load_dataset, paired_design
from fastmem.data.generators import Generate, load_generator
from fastmem.data.shifts import gaussian_noise
from fastmem.defenses import decayed, require_linear_output, smoothed
from fastmem.defenses.laplace import require_package
from fastmem.engine import code_version, content_key, source_fingerprint
from fastmem.errors import InputError, UnknownNameError
from fastmem.imports import is_import_path
from fastmem.models import build_model, count_parameters
from fastmem.models.dcgan import gan_sides
from fastmem.studies.trust.config import TrustConfig
from fastmem.studies.trust.job import LAPLACE, Cohort, Job
from fastmem.studies.trust.scores import ATTACKS, NEED_REFERENCES
from fastmem.studies.trust.sets import Records, TrustSplit, fake_records, make_sets, resolve_names, split_trust
from fastmem.studies.trust.task import train_states
from fastmem.training import Recipe

__all__ = ["TrustPlan", "make_plan", "try_training", "with_fakes"]

_TRAINING_CODE = ("data/transforms.py", "data/dataset.py", "models", "ops", "training", "studies/trust/task.py")
_QUERY_CODE = ("data", "defenses", "ops", "signals", "studies/trust/task.py", "studies/trust/sets.py")
_GAN_CODE = ("models/dcgan.py", "training/gan.py", "training/checkpoint.py")
# With fewer pairs beside the target's own, LiRA's spread would rest on a single reference.
_MODELS_FOR_REFERENCES = 6
_TARGETS = 4
# An MLP of the default width is far larger than data of this few values call for.
_FEW_INPUTS = 64
_FEW_INPUTS_HIDDEN = [128]
_NOISE_RECORDS = 1000
# About a second of arithmetic on one core; packs of small perceptrons are trained together.
_TASK_OPERATIONS = 2e10
_LARGEST_PACK = 8


@dataclass(frozen=True, eq=False)
class TrustPlan:
    """A trust study, ready to run.

    Args:
        config: The config with its defaults resolved.
        dataset: All records.
        split: Which are trained on, tested and held out.
        set_names: The sets of non-members, in order.
        attacks: Keys of the attacks.
        generate: Where fakes come from; None for the DCGAN that is trained here, or where there are none.
        gan_key: Content key of that DCGAN.
        job: What the tasks share; its ``asked`` lacks the fakes until :func:`with_fakes`.
        workers: Processes.
        parameters: Trainable values of one model.
        dense: Whether all of them are in linear layers.
    """

    config: TrustConfig
    dataset: Dataset
    split: TrustSplit
    set_names: tuple[str, ...]
    attacks: tuple[str, ...]
    generate: Generate | None
    gan_key: str
    job: Job
    workers: int
    parameters: int
    dense: bool

    @property
    def gan_checkpoint(self) -> Path:
        """Where the DCGAN is saved."""
        return Path(self.job.folder) / "models" / "gan.safetensors"

    @property
    def has_fakes(self) -> bool:
        """Whether images are generated."""
        return "fake" in self.set_names

    @property
    def trains_gan(self) -> bool:
        """Whether a DCGAN is trained for them."""
        return self.has_fakes and self.generate is None

    @property
    def rows_per_task(self) -> int:
        """Models that a task trains: one, but for perceptrons so small that some of them take a second or so."""
        if not self.dense:
            return 1
        operations = 6 * self.parameters * len(self.job.x) / 2 * self.config.recipe.epochs
        return int(np.clip(_TASK_OPERATIONS / operations, 1, _LARGEST_PACK))


def make_plan(config: TrustConfig) -> TrustPlan:
    """Loads the data and checks everything that can be checked before training.

    Raises:
        InputError: If a name is unknown, sizes do not fit, a set or a generator does not suit the records, or the model
            cannot take a calibration.
    """
    device = _device(config.device)
    attacks = _attacks(config)
    dataset = load_dataset(config.data, config.data_root)
    names = resolve_names(config.set_keys, dataset.is_image)
    split = split_trust(dataset, config.pool, config.test, config.held_out, config.attack_size, config.seed)
    config = _resolved(config, split, names)
    sets = make_sets(names, split, config.attack_size, config.seed, config.data_root)
    model = build_model(config.model, dataset.input_shape, dataset.num_classes, 0, **config.model_args)
    if "laplace" in config.calibration_keys:
        require_linear_output(model, dataset.input_shape)
        require_package()
    generate = _generator(config, dataset) if "fake" in names else None
    mean, std = split.pool.channel_stats()
    held_out = split.held_out
    noise = gaussian_noise(_NOISE_RECORDS, split.pool.x, mean, std, config.seed + 4)
    job = Job(
        cohorts={},
        x=split.pool.x.numpy(),
        y=split.pool.y.numpy(),
        train=paired_design(config.num_models, len(split.pool), config.seed),
        asked=(
            Records("pool", "Pool", "trained on", split.pool.x.numpy(), split.pool.y.numpy()),
            Records("held_out", "Held out", "in distribution", held_out.x.numpy(), held_out.y.numpy()),
            *sets,
        ),
        labels=np.zeros(0, np.int64),
        keep=np.zeros((0, 0), bool),
        row_keys={},
        model=config.model,
        model_args=config.model_args,
        num_classes=dataset.num_classes,
        mean=mean.numpy(),
        std=std.numpy(),
        noise=noise.numpy(),
        device=device,
        folder=str(config.run_dir),
    )
    job = replace(job, cohorts=_cohorts(config, job, split.pool.fingerprint()))
    gan_key = content_key(
        records=held_out.fingerprint(),
        recipe=_plain(config.gan),
        seed=config.seed,
        device=device,
        torch=str(torch.__version__),
        code=code_version(*_GAN_CODE),
    )
    plan = TrustPlan(
        config,
        dataset,
        split,
        names,
        attacks,
        generate,
        gan_key,
        job,
        config.workers or (1 if device == "cuda" else joblib.cpu_count()),
        count_parameters(model),
        all(isinstance(module, nn.Linear) or not list(module.parameters(recurse=False)) for module in model.modules()),
    )
    return plan if plan.has_fakes else with_fakes(plan, None)


def with_fakes(plan: TrustPlan, images: Tensor | None) -> TrustPlan:
    """The plan with its generated images among what is asked, and the keys of all rows.

    Args:
        plan: From :func:`make_plan`.
        images: uint8 [K, C, H, W]; None where no images are generated.
    """
    job = plan.job
    asked = job.asked if images is None else (*job.asked, fake_records(images))
    labels = np.concatenate([np.zeros(len(part.x), np.int64) if part.y is None else part.y for part in asked])
    keep = np.zeros((len(job.train), len(labels)), bool)
    keep[:, : job.train.shape[1]] = job.train
    shared = {
        "asked": [(part.name, part.view, part.x, part.y) for part in asked],
        "normalisation": (job.mean, job.std),
        "device": job.device,
        "batch": job.query_batch,
        "code": code_version(*_QUERY_CODE),
    }
    asked_key = content_key(**shared)
    row_keys = {
        name: tuple(content_key(model=key, asked=asked_key) for key in cohort.keys)
        for name, cohort in job.cohorts.items()
    }
    if LAPLACE in plan.config.calibration_keys:
        noise = content_key(noise=job.noise)
        keys = job.cohorts["none"].keys
        row_keys[LAPLACE] = tuple(content_key(model=key, asked=asked_key, laplace=noise) for key in keys)
    return replace(plan, job=replace(job, asked=asked, labels=labels, keep=keep, row_keys=row_keys))


def try_training(plan: TrustPlan) -> None:
    """Trains one model on a single batch and forgets it: what cannot be trained shows before anything is written.

    Raises:
        InputError: If the recipe does not fit the records, the network or the device.
    """
    job, recipe = plan.job, plan.config.recipe
    short = replace(
        recipe, epochs=1, schedule="constant", milestones=(), warmup_epochs=0.0, stop_at_train_accuracy=None
    )
    first = np.arange(len(job.x))[None] < min(recipe.batch_size, len(job.x))
    train_states(job, short, (0,), (0,), first)


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "cuda, but torch finds no CUDA device here", "give --device cpu or auto")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _attacks(config: TrustConfig) -> tuple[str, ...]:
    enough = config.num_models >= _MODELS_FOR_REFERENCES
    if config.attack_keys == ("all",):
        return tuple(key for key in ATTACKS if enough or key not in NEED_REFERENCES)
    for key in config.attack_keys:
        if key not in ATTACKS:
            raise UnknownNameError("attacks", key, [*ATTACKS, "all"])
        if key in NEED_REFERENCES and not enough:
            raise InputError(
                "num_models", f"{config.num_models}, but {key} compares with other pairs", "give at least 6"
            )
    # The false-member stream and the answer speak of the first published attack.
    return tuple(dict.fromkeys(("max_prob", *config.attack_keys)))


def _resolved(config: TrustConfig, split: TrustSplit, names: Sequence[str]) -> TrustConfig:
    """The config with every default that depends on the data filled in."""
    model_args = dict(config.model_args)
    if config.model == "mlp" and "hidden" not in model_args and split.pool.x[0].numel() <= _FEW_INPUTS:
        model_args["hidden"] = _FEW_INPUTS_HIDDEN
    if config.recipe.patience is not None:
        raise InputError(
            "recipe.patience", f"{config.recipe.patience}", "leave it out: published models train to the end"
        )
    return replace(
        config,
        pool=len(split.pool),
        test=len(split.test),
        held_out=len(split.held_out),
        attack_size=min(config.attack_size, len(split.test) // 2, len(split.pool) // 2),
        model_args=model_args,
        targets=config.targets or min(config.num_models, _TARGETS),
        nonmembers=tuple(names),
        # A folder has an end: it is a set, no stream.
        false_members=0 if "fake" not in names or _is_folder(config.generator) else config.false_members,
    )


def _is_folder(generator: str) -> bool:
    return generator != "dcgan" and not is_import_path(generator)


def _generator(config: TrustConfig, dataset: Dataset) -> Generate | None:
    if config.generator == "dcgan":
        gan_sides(dataset.input_shape)
        return None
    generate = load_generator(config.generator, dataset.input_shape)
    generate(config.attack_size, config.seed)  # shows now what it gives
    return generate


def _cohorts(config: TrustConfig, job: Job, records: str) -> dict[str, Cohort]:
    keys = config.calibration_keys
    recipes = {"none": config.recipe}
    if "label_smoothing" in keys:
        recipes["label_smoothing"] = smoothed(config.recipe, config.smoothing)
    if "weight_decay" in keys:
        recipes["weight_decay"] = decayed(config.recipe, config.decay)
    if "ensemble" in keys:
        recipes |= {f"ensemble_{member}": config.recipe for member in range(1, config.ensemble_size)}
    return {name: _cohort(name, recipe, config.seed, job, records) for name, recipe in recipes.items()}


def _cohort(name: str, recipe: Recipe, seed: int, job: Job, records: str) -> Cohort:
    # Cohorts of the other recipes start from the weights of the uncalibrated one: only the recipe differs.
    stream = name if name.startswith("ensemble") else "none"
    seeds = tuple(int(content_key(seed=seed, cohort=stream, model=model)[:15], 16) for model in range(len(job.train)))
    shared = {
        "records": records,
        "normalisation": (job.mean, job.std),
        "model": job.model,
        "model_args": job.model_args,
        "model_source": source_fingerprint("model", job.model) if is_import_path(job.model) else None,
        "recipe": _plain(recipe),
        "device": job.device,
        "torch": str(torch.__version__),
        "code": code_version(*_TRAINING_CODE),
    }
    keys = tuple(content_key(train=row, seed=own, **shared) for row, own in zip(job.train, seeds, strict=True))
    return Cohort(name, recipe, seeds, keys)


def _plain(recipe: Any) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in fields(recipe)}
