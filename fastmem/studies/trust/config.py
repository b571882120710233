"""What decides a trust study, in one frozen dataclass; the docstring of a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.keys import split_keys
from fastmem.training.gan import GanRecipe
from fastmem.training.recipe import Recipe

__all__ = ["CALIBRATIONS", "DEVICE_NAMES", "ENGINE_NAMES", "OPTION_GROUPS", "TrustConfig"]

DEVICE_NAMES = ("auto", "cpu", "cuda")
# Those of fastmem.engine, which --help has no time to import.
ENGINE_NAMES = ("local", "ray")
#: Calibrations by key, with what people call them; the first is always run, the others are compared with it.
CALIBRATIONS = {
    "none": "Uncalibrated",
    "label_smoothing": "Label smoothing",
    "weight_decay": "Weight decay (L2)",
    "temperature": "Fixed temperature",
    "temperature_fit": "Fitted temperature",
    "laplace": "Last-layer Laplace",
    "ensemble": "Ensemble",
}

OPTION_GROUPS = {
    "Data": ("data", "data_root", "pool", "test", "held_out"),
    "Models and training": ("model", "model_args", "num_models"),
    "Non-members": ("nonmembers", "attack_size", "generator", "false_members"),
    "Calibration": ("calibrations", "smoothing", "decay", "temperature", "ensemble_size"),
    "Attacks": ("attacks", "targets"),
    "The run": ("out", "name", "seed"),
    "Where it runs": ("device", "workers", "engine", "ray_address"),
}

_COUNTS = {"pool": 4, "test": 4, "held_out": 2, "attack_size": 2, "false_members": 0, "ensemble_size": 2, "workers": 1}


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """How far can prediction-score membership attacks be believed?"""

    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with one
    sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    pool: int | None = None
    """Records that are trained on, half by each model of a pair (default: 25000 as published, less of a small set)."""
    test: int | None = None
    """Records that no model trains on, half for each model of a pair (default: the test split, up to twice the attack
    size)."""
    held_out: int | None = None
    """Further such records, for the generator, the fits of calibrations and RMIA's population; never evaluated
    (default: what is left, up to 10000)."""

    model: str = "mlp"
    """Network: mlp, cnn, resnet18, wrn28-2, or package.module:Class called with (input_shape, num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    num_models: int = 8
    """Models, an even number: pairs of a target and its one shadow model, which also change places; from 6 on LiRA and
    RMIA take the other pairs as references."""
    recipe: Recipe = field(
        default_factory=lambda: Recipe(optimizer="adam", learning_rate=0.001, schedule="constant", epochs=100)
    )
    """How each model is trained (default: as published)."""

    nonmembers: str | tuple[str, ...] = "all"
    """Sets of non-members beside the test records, comma-separated: permuted, scaled, unnormalised, noise, photos, fake,
    and the names, files or folders of other data sets; all takes the six that need none."""
    attack_size: int = 2500
    """Members, and non-members of each set, that the attacks are asked about, at most."""
    generator: str = "dcgan"
    """Where fake images come from: dcgan (trained here on the held-out records), package.module:function called with
    (count, seed), or a folder of pictures."""
    gan: GanRecipe = field(default_factory=GanRecipe)
    """How the DCGAN is trained."""
    false_members: int = 1000
    """False members to draw from the generator, however many images that takes; 0 leaves it out."""

    calibrations: str | tuple[str, ...] = "all"
    """Calibrations beside none, comma-separated: label_smoothing, weight_decay, temperature, temperature_fit, laplace,
    ensemble, or all; target and shadow model alike."""
    smoothing: float = 0.0083
    """Label smoothing: share of the target spread over all classes."""
    decay: float = 3e-4
    """Weight decay."""
    temperature: float = 10.0
    """The fixed temperature."""
    ensemble_size: int = 3
    """Models in an ensemble."""

    attacks: str | tuple[str, ...] = "all"
    """Attacks, comma-separated: max_prob, entropy, top3, max_prob_float64, loss, modified_entropy,
    lira_offline_cdf, rmia_offline, or all that can work."""
    targets: int | None = None
    """How many of the models to attack, the first ones, an even number (default: 4, or all where there are fewer)."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: trust-DATA)."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu or cuda."""
    workers: int | None = None
    """Processes that train at the same time, one thread each (default: one a core; 1 on a GPU)."""
    engine: str = "local"
    """Where tasks run: local (worker processes of this machine) or ray."""
    ray_address: str | None = None
    """A Ray cluster that is there and shares the run's folder: auto, host:6379 or ray://host:10001 (default: Ray is
    started on this machine)."""
    seed: int = 0
    """Seed of the split, the models, the generator and the sets."""

    def __post_init__(self) -> None:
        for name, accepted in (("device", DEVICE_NAMES), ("engine", ENGINE_NAMES)):
            if getattr(self, name) not in accepted:
                raise UnknownNameError(name, getattr(self, name), accepted)
        if self.engine != "ray" and self.ray_address is not None:
            raise InputError("ray_address", f"{self.ray_address} with the {self.engine} engine", "add --engine ray")
        for key in self.calibration_keys:
            if key not in CALIBRATIONS:
                raise UnknownNameError("calibrations", key, [*CALIBRATIONS, "all"])
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(name, f"{value}", f"give at least {least}")
        for name in ("num_models", "targets"):
            value = getattr(self, name)
            if value is not None and (value < 2 or value % 2):
                raise InputError(name, f"{value}", "give an even number, at least 2: models come in pairs")
        if self.targets is not None and self.targets > self.num_models:
            raise InputError("targets", f"{self.targets}", f"there are {self.num_models} models")
        if not 0 < self.temperature < float("inf"):
            raise InputError("temperature", f"{self.temperature}", "give a number above 0")
        if not 0 <= self.smoothing < 1:
            raise InputError("smoothing", f"{self.smoothing}", "give a share from 0 to below 1")
        if self.decay < 0:
            raise InputError("decay", f"{self.decay}", "give a number from 0")
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", f"{self.seed}", "give a number from 0 to 2^63 - 1")

    @property
    def calibration_keys(self) -> tuple[str, ...]:
        """The calibrations to run, ``none`` first."""
        keys = split_keys(self.calibrations)
        return tuple(dict.fromkeys(("none", *(CALIBRATIONS if keys == ("all",) else keys))))

    @property
    def attack_keys(self) -> tuple[str, ...]:
        """The attacks asked for; ``("all",)`` for all."""
        return split_keys(self.attacks)

    @property
    def set_keys(self) -> tuple[str, ...]:
        """The sets asked for beside the test records; ``("all",)`` for all."""
        return split_keys(self.nonmembers)

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        name = self.name or f"trust-{Path(self.data).stem.replace(':', '-')}"
        return Path(self.out) if self.out is not None else Path("runs") / name
