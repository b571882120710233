"""What a reconstruction study will do: which images each victim trains on, its network, and the settings of the attack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.attacks.reconstruct import PUBLISHED, ReconstructSettings, balanced_labels, random_settings
from fastmem.attacks.reconstruct_victim import MarginTraining, homogeneous_mlp
from fastmem.data import Dataset, load_dataset
from fastmem.engine import code_version, content_key
from fastmem.errors import InputError, StoreError
from fastmem.models import build_model
from fastmem.ops.kkt_residual import PRECISIONS, KktNetwork
from fastmem.studies.device import choose_device
from fastmem.studies.reconstruct.config import ReconstructConfig
from fastmem.training import load_checkpoint, load_into

__all__ = ["Part", "ReconstructPlan", "Victim", "make_plan"]

_CODE = (*(f"attacks/reconstruct{part}.py" for part in ("", "_graph", "_settings", "_step", "_victim")), "ops")
_BALANCES = (0.3, 0.5, 0.7)
_ANIMALS = (2, 3, 4, 5, 6, 7)
_PLAIN_EPOCHS, _PUBLISHED_EPOCHS = 20_000, 1_000_000
_REGRESSION_LOSS, _FLOAT32_LOSS, _FLOAT64_LOSS = 1e-7, 1e-12, 1e-40
# Rows of one call on a CPU: beyond that nothing is gained, and a kill would cost more.
_ROWS = 800

_OWN = {
    "fast": ReconstructSettings(iterations=2500, optimizer="adam", lr_x=0.05, lr_lambda=0.05, step="cosine"),
    "adaptive": ReconstructSettings(iterations=2500, step="adaptive"),
}


@dataclass(frozen=True, eq=False)
class Victim:
    """A network to attack and what is known of its training set.

    Args:
        name: Of its files.
        records: Numbers of its training records in the data set [n]; None where nobody told.
        held_out: Numbers of records that it did not train on [h]; empty where nobody told.
        seed: Of its initial weights.
        key: Content key of the trained network.
    """

    name: str
    records: np.ndarray | None
    held_out: np.ndarray
    seed: int
    key: str


@dataclass(frozen=True, eq=False)
class Part:
    """Settings that advance in one call.

    Args:
        name: Of its files.
        settings: S of them.
        labels: Of their candidates [S, m].
        key: Content key of what they find in a victim, without the victim's.
    """

    name: str
    settings: tuple[ReconstructSettings, ...]
    labels: Tensor
    key: str


@dataclass(frozen=True, eq=False)
class ReconstructPlan:
    """Everything that is decided before work starts.

    Args:
        config: The config, with what it left open filled in.
        dataset: Where images come from.
        labels: Of all records: -1 and 1 (float), or classes.
        outputs: Of the network: 1, or classes.
        training: How victims are trained.
        victims: Who is attacked.
        device: Where.
    """

    config: ReconstructConfig
    dataset: Dataset
    labels: Tensor
    outputs: int
    training: MarginTraining
    victims: tuple[Victim, ...]
    device: str

    @property
    def dtype(self) -> torch.dtype:
        """Of networks and candidates."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    def pixels(self, records: np.ndarray) -> Tensor:
        """Records as numbers; pixels in [0, 1]."""
        x = self.dataset.x[torch.from_numpy(records)]
        return x.to(self.dtype) / 255 if self.dataset.is_image else x.to(self.dtype)

    def mean(self, victim: Victim) -> Tensor:
        """What is subtracted from every image: the victim's training mean, or, where nobody told, that of the data."""
        records = np.arange(len(self.dataset)) if victim.records is None else victim.records
        return self.pixels(records).mean(0)

    def network(self, victim: Victim) -> nn.Module:
        """The network with its initial weights."""
        config = self.config
        if config.model == "paper":
            return homogeneous_mlp(
                int(np.prod(self.dataset.input_shape)), self.outputs, config.hidden, seed=victim.seed
            ).to(self.device, self.dtype)
        model = build_model(config.model, self.dataset.input_shape, self.outputs, victim.seed, **config.model_args)
        return model.to(self.device, self.dtype)

    def own_network(self) -> nn.Module:
        """The user's network with the weights of the checkpoint.

        Raises:
            InputError: They do not fit, or are not finite.
        """
        path = self.config.checkpoint
        assert path is not None
        model = self.network(self.victims[0])
        try:
            state, _ = load_checkpoint(path)
        except StoreError as error:
            raise InputError("checkpoint", error.problem, error.remedy) from error
        load_into(model, state, "checkpoint")
        return model.eval()

    def parts(self, victim: Victim) -> list[Part]:
        """The settings of the attack, in calls of a bearable size."""
        several, shares = self._settings()
        m = several[0][1]
        labels = torch.stack([self._candidate_labels(victim, m, share) for share in shares])
        size = max(1, _ROWS // m) if self.device == "cpu" else len(several)
        return [
            Part(
                f"{victim.name}-part-{at // size}",
                tuple(one for one, _ in several[at : at + size]),
                labels[at : at + size],
                content_key(
                    victim=victim.key,
                    settings=[vars(one) for one, _ in several[at : at + size]],
                    labels=labels[at : at + size].numpy(),
                    initial=self.config.from_initial,
                    device=self.device,
                    dtype=str(self.dtype),
                    torch=str(torch.__version__),
                    code=code_version(*_CODE),
                ),
            )
            for at in range(0, len(several), size)
        ]

    def _settings(self) -> tuple[list[tuple[ReconstructSettings, int]], list[float | None]]:
        """Every setting with its number of candidates, and the share of positive labels: None for the true one."""
        config = self.config
        base = _OWN.get(config.preset) or PUBLISHED[config.preset]
        m = config.m or 2 * config.n
        low, high = (-1.0, 1.0) if self.dataset.is_image else (-10.0, 10.0)
        base = replace(
            base,
            iterations=config.iterations or base.iterations,
            lambda_min=None if config.task == "regression" else base.lambda_min,
            precision=config.precision if config.precision in PRECISIONS else "native",
            low=low,
            high=high,
            seed=config.seed,
        )
        balances: list[float | None] = [None] if config.balance == "true" else [0.5]
        if config.balance == "search" and self.outputs == 1:
            balances = list(_BALANCES)
        if config.sweep:
            drawn = random_settings(config.sweep, base, config.seed)
        else:
            drawn = [replace(base, seed=base.seed + restart) for restart in range(config.restarts)]
        several = [(one, m) for one in drawn for _ in balances]
        return several, [share for _ in drawn for share in balances]

    def _candidate_labels(self, victim: Victim, m: int, share: float | None) -> Tensor:
        if share is None:
            assert victim.records is not None, "the config refuses a true balance of unknown records"
            own = self.labels[torch.from_numpy(victim.records)]
            return own[torch.arange(m) % len(own)]
        return balanced_labels(m, self.outputs, share)


def make_plan(config: ReconstructConfig) -> ReconstructPlan:
    """Loads the data and checks everything that can be checked before training.

    Raises:
        InputError: A name is unknown, sizes do not fit, or the checkpoint is none of the model's.
    """
    device = choose_device(config.device)
    if config.precision == "tf32x3" and device != "cuda":
        raise InputError("precision", f"tf32x3 on {device}, which has no TF32", "use float32, compensated or float64")
    dataset = load_dataset(config.data, config.data_root)
    outputs = dataset.num_classes if config.task == "multiclass" else 1
    labels = dataset.y if outputs > 1 else _signs(config, dataset)
    training = _training(config)
    own = config.checkpoint is not None
    plan = ReconstructPlan(config, dataset, labels, outputs, training, (), device)
    victims = [_own_victim(plan)] if own else [_victim(plan, number) for number in range(config.victims)]
    plan = replace(plan, victims=tuple(victims))
    if own:
        records = victims[0].records
        if records is not None:
            plan = replace(plan, config=replace(config, n=len(records)))
        KktNetwork.of(plan.own_network())
    return plan


def _signs(config: ReconstructConfig, dataset: Dataset) -> Tensor:
    classes = config.positive or (_ANIMALS if dataset.name == "cifar10" else tuple(range(1, dataset.num_classes, 2)))
    if min(classes) < 0 or max(classes) >= dataset.num_classes or len(set(classes)) >= dataset.num_classes:
        raise InputError(
            "positive", f"{list(classes)}", f"give some, not all, of the classes 0 to {dataset.num_classes - 1}"
        )
    return torch.where(torch.isin(dataset.y, torch.tensor(classes)), 1.0, -1.0)


def _training(config: ReconstructConfig) -> MarginTraining:
    """The victim's recipe; plain descent where the loss does not vanish with the margin."""
    published = config.schedule == "published"
    plain = published or config.weight_decay > 0 or config.task == "regression"
    floor = _FLOAT64_LOSS if config.precision == "float64" and published else _FLOAT32_LOSS
    return MarginTraining(
        task=config.task,
        schedule=config.schedule,
        rate=0.01 if plain else 0.1,
        momentum=0.9,
        weight_decay=config.weight_decay,
        stop_loss=_REGRESSION_LOSS if config.task == "regression" else floor,
        max_epochs=_PUBLISHED_EPOCHS if published else _PLAIN_EPOCHS,
    )


def _victim(plan: ReconstructPlan, number: int) -> Victim:
    """Training images of each label alike, drawn at random, and held-out ones drawn from the same labels."""
    config = plan.config
    rng = np.random.default_rng([config.seed, number, 37])
    kinds = np.unique(plan.labels.numpy())
    if config.n < len(kinds):
        raise InputError("n", f"{config.n} images for {len(kinds)} labels", f"give at least {len(kinds)}")
    per_label = [config.n // len(kinds) + (at < config.n % len(kinds)) for at in range(len(kinds))]
    records, others = [], []
    for kind, count in zip(kinds, per_label, strict=True):
        there = rng.permutation(np.flatnonzero(plan.labels.numpy() == kind))
        left = min(len(there) - count, -(-config.held_out * count // config.n))
        if left < 1:
            raise InputError("n", f"{config.n}", f"{plan.dataset.name} has {len(there)} records of a label; give less")
        records.append(there[:count])
        others.append(there[count : count + left])
    chosen, held_out = np.concatenate(records), np.concatenate(others)
    seed = int(rng.integers(1 << 31))
    key = content_key(
        data=plan.dataset.fingerprint(),
        records=chosen,
        labels=plan.labels[torch.from_numpy(chosen)].numpy(),
        training=vars(plan.training),
        hidden=config.hidden,
        outputs=plan.outputs,
        seed=seed,
        dtype=str(plan.dtype),
        device=plan.device,
        torch=str(torch.__version__),
        code=code_version(*_CODE),
    )
    return Victim(f"victim-{number}", chosen, held_out, seed, key)


def _own_victim(plan: ReconstructPlan) -> Victim:
    config = plan.config
    path = config.checkpoint
    assert path is not None
    records, held_out = None, np.zeros(0, np.int64)
    if config.members is not None:
        records = _members(config.members, len(plan.dataset))
        rest = np.setdiff1d(np.arange(len(plan.dataset)), records)
        held_out = np.random.default_rng([config.seed, 41]).permutation(rest)[: config.held_out]
        if not len(held_out):
            raise InputError("members", "names every record", "leave some out: they are the null")
    content = path.read_bytes() if path.is_file() else b""
    options: dict[str, Any] = {"model": config.model, "arguments": config.model_args, "hidden": config.hidden}
    return Victim("model", records, held_out, 0, content_key(content=hashlib.sha256(content).hexdigest(), **options))


def _members(path: Path, total: int) -> np.ndarray:
    try:
        records = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            "members", f"{path} is no .npy file ({error})", "save record numbers with numpy.save"
        ) from error
    if records.ndim != 1 or records.dtype.kind not in "iu" or not len(records):
        raise InputError("members", f"{records.dtype} {list(records.shape)}", "give record numbers [n]")
    if int(records.min()) < 0 or int(records.max()) >= total or len(np.unique(records)) < len(records):
        raise InputError("members", "numbers out of range or twice", f"give each once, from 0 to {total - 1}")
    return records.astype(np.int64)
