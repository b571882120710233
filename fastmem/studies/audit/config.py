"""What decides an audit, in one frozen dataclass: the command line, the YAML file and Python all fill the same fields.

The first sentence of each field's docstring is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.keys import split_keys
from fastmem.training.recipe import Recipe

__all__ = ["DESIGN_NAMES", "DEVICE_NAMES", "OPTION_GROUPS", "AuditConfig"]

DESIGN_NAMES = ("rank", "paired")
DEVICE_NAMES = ("auto", "cpu", "cuda")
# Those of fastmem.engine, which --help has no time to import.
ENGINE_NAMES = ("local", "ray")

OPTION_GROUPS = {
    "Data": ("data", "data_root", "pool", "population", "bystanders"),
    "Models and training": ("model", "model_args", "num_models", "design", "null_models"),
    "A model of your own": ("checkpoint", "members", "input_mean", "input_std"),
    "Attacks": ("attacks", "queries", "targets"),
    "The run": ("out", "name", "store", "save_models", "save_logits", "seed"),
    "Where it runs": ("device", "workers", "engine", "ray_address", "gpus_per_task"),
}


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """A membership audit: which records of a pool can an attacker name as training data of a model?"""

    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with one
    sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    pool: int | None = None
    """Records that are trained on and attacked; each is in half of the models (default: 4/7 of the data, up to
    10000)."""
    population: int | None = None
    """Records that no model trains on; RMIA and Population compare with them (default: what is left, up to the
    pool's size)."""
    bystanders: int | None = None
    """Records that the control models train on (default: half the pool)."""

    model: str = "mlp"
    """Network: mlp, cnn, resnet18, wrn28-2, or package.module:Class called with (input_shape, num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    num_models: int = 64
    """Shadow models, an even number; each is the target once, the others are the attacker's."""
    design: str = "rank"
    """How records go to models: rank (each record in exactly half of them) or paired (model 2i+1 trains on what 2i
    left out)."""
    null_models: int = 16
    """Control models that never see the pool, an even number; 0 leaves this control out."""
    recipe: Recipe = field(default_factory=Recipe)
    """How each model is trained."""

    checkpoint: str | None = None
    """Audit this model instead of the shadow models: a safetensors file, or a state dict that torch.load reads with
    weights_only, of the network given by --model; the shadow models are its references."""
    members: str | None = None
    """Which records of the data set the checkpoint was trained on: a .npy file of booleans, one a record, or of record
    numbers; all others count as not seen."""
    input_mean: tuple[float, ...] | None = None
    """Mean that the checkpoint's inputs were normalised by, a value a channel, of pixels from 0 to 1 (default: the
    pool's own)."""
    input_std: tuple[float, ...] | None = None
    """Standard deviation, likewise."""

    attacks: str | tuple[str, ...] = "all"
    """Attacks, comma-separated keys (fastmem attack --list shows them), or all."""
    queries: str = "none"
    """Views of each record shown to the models: none (the clean one), flip (2), shift (9) or flip+shift (18)."""
    targets: int | None = None
    """How many of the models to attack, the first ones, each against all others (default: all)."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: audit-DATA)."""
    store: str | None = None
    """Where signals.zarr and models go: a folder that all machines see, or any fsspec URL such as s3://bucket/run
    (default: the run's folder)."""
    save_models: bool = True
    """Keep the audited models as safetensors."""
    save_logits: bool = False
    """Keep the logits beside the statistics that the attacks need."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu or cuda."""
    workers: int | None = None
    """Processes that train at the same time, one thread each (default: one a core; 1 on a GPU)."""
    engine: str = "local"
    """Where tasks run: local (worker processes of this machine) or ray."""
    ray_address: str | None = None
    """A Ray cluster that is there: auto, host:6379 or ray://host:10001 (default: Ray is started on this machine with
    as many processors as --workers)."""
    gpus_per_task: float | None = None
    """Share of a GPU that a task takes on Ray, 0.25 for four at a time on each GPU (default: 1 with --device cuda)."""
    seed: int = 0
    """Seed of the split, the design, the models and the controls."""

    def __post_init__(self) -> None:
        for name in ("input_mean", "input_std"):  # lists, where they come from YAML
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(values))
        _check_name("design", self.design, DESIGN_NAMES)
        _check_name("device", self.device, DEVICE_NAMES)
        _check_name("engine", self.engine, ENGINE_NAMES)
        _check_even("num_models", self.num_models, least=2)
        _check_even("null_models", self.null_models, least=0)
        _check_count("targets", self.targets, 1, self.num_models, "the number of models")
        _check_count("workers", self.workers, 1, None, "")
        _check_count("seed", self.seed, 0, 2**63 - 1, "63 bits")
        self._check_engine()
        self._check_checkpoint()

    @property
    def attack_keys(self) -> tuple[str, ...]:
        """The attacks asked for, as a tuple of keys; ``("all",)`` for all."""
        return split_keys(self.attacks)

    @property
    def run_name(self) -> str:
        """The run's name: ``name``, else one made from the data set's."""
        return self.name or f"audit-{Path(self.data).stem.replace(':', '-')}"

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        return Path(self.out) if self.out is not None else Path("runs") / self.run_name

    def _check_engine(self) -> None:
        for name in ("ray_address", "gpus_per_task"):
            if self.engine != "ray" and getattr(self, name) is not None:
                raise InputError(name, f"{getattr(self, name)} with the {self.engine} engine", "add --engine ray")
        if self.gpus_per_task is not None and not 0 < self.gpus_per_task <= 8:
            raise InputError("gpus_per_task", f"{self.gpus_per_task}", "give a share of a GPU, for example 0.25")

    def _check_checkpoint(self) -> None:
        if self.checkpoint is not None and self.members is None:
            raise InputError(
                "members", "not given", "say which records --checkpoint was trained on: --members FILE.npy"
            )
        for name in ("members", "input_mean", "input_std"):
            if self.checkpoint is None and getattr(self, name) is not None:
                raise InputError(name, "given without a model of your own", "add --checkpoint FILE")
        if self.checkpoint is not None and self.targets is not None:
            raise InputError(
                "targets", f"{self.targets} beside --checkpoint", "leave it out: the checkpoint is the target"
            )
        if (self.input_mean is None) != (self.input_std is None):
            raise InputError("input_mean, input_std", "one without the other", "give both or none")


def _check_name(argument: str, given: str, valid: tuple[str, ...]) -> None:
    if given not in valid:
        raise UnknownNameError(argument, given, valid)


def _check_even(argument: str, given: int, least: int) -> None:
    if given < least or given % 2:
        raise InputError(argument, f"{given}", f"give an even number, at least {least}: each record is in half of them")


def _check_count(argument: str, given: int | None, least: int, most: int | None, limit: str) -> None:
    if given is not None and not least <= given <= (given if most is None else most):
        accepted = f"at least {least}" if most is None else f"a number from {least} to {most} ({limit})"
        raise InputError(argument, f"{given}", f"give {accepted}")
