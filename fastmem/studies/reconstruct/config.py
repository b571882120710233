"""What decides a reconstruction study, in one frozen dataclass; the docstring of a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError

__all__ = ["OPTION_GROUPS", "PRESETS", "ReconstructConfig"]

_DEVICES = ("auto", "cpu", "cuda")
_TASKS = ("binary", "multiclass", "regression")
_SCHEDULES = ("adaptive", "published")
_BALANCES = ("half", "true", "search")
_RANKS = ("blind", "oracle")
_PRECISIONS = ("float32", "compensated", "tf32x3", "float64")
#: Settings by name; ``fast`` is fastmem's own, the others are fastmem.attacks.reconstruct.PUBLISHED.
PRESETS = (
    "fast",
    "adaptive",
    "mnist-kcf9bhbi",
    "mnist-rbijxft7",
    "cifar-b9dfyspx",
    "cifar-k60fvjdy",
    "multiclass-2",
    "regression",
    "ntk",
)

OPTION_GROUPS = {
    "Data": ("data", "data_root", "n", "held_out", "positive"),
    "The victim": ("task", "hidden", "schedule", "weight_decay", "victims"),
    "A model of your own": ("checkpoint", "model", "model_args", "members"),
    "The attack": ("preset", "m", "iterations", "balance", "from_initial", "precision"),
    "Many settings": ("restarts", "sweep", "rank"),
    "The run": ("out", "name", "seed"),
    "Where it runs": ("device",),
}


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Which training images can be read out of a network's weights?"""

    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with one
    sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    n: int = 10
    """Training images of a victim, as many of each label."""
    held_out: int = 1000
    """Images that no victim trains on, at most: the null of every count."""
    positive: tuple[int, ...] = ()
    """Classes that get the label 1, as [1,3,5]; the others get -1 (default: the odd ones; of cifar10 the animals)."""

    task: str = "binary"
    """What a victim learns: binary, multiclass (all classes) or regression (-1 and 1 as values)."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Widths of the hidden layers, as [1000,1000]."""
    schedule: str = "adaptive"
    """How it is trained, full batch: adaptive (to the margin in hundreds of steps) or published (plain descent at 0.01
    for a million)."""
    weight_decay: float = 0.0
    """Weight decay of a victim; above 0 it is trained for 20000 plain steps."""
    victims: int = 1
    """Victims, each with training images and initial weights of its own; from 2 on, means have intervals."""

    checkpoint: Path | None = None
    """Attack this safetensors file of --model instead of training victims."""
    model: str = "paper"
    """Its network: paper (as victims: --hidden, a bias in the first layer alone), mlp, cnn, resnet18, wrn28-2, or
    package.module:Class called with (input_shape, num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    members: Path | None = None
    """A .npy file with the numbers of the records it was trained on; without it nothing can be counted, and candidates
    are only ranked."""

    preset: str = "fast"
    """Setting of the attack: fast (Adam, half a cosine), adaptive (descent with a step that follows the loss), or a
    published one: mnist-kcf9bhbi, mnist-rbijxft7, cifar-b9dfyspx, cifar-k60fvjdy, multiclass-2, regression, ntk."""
    m: int | None = None
    """Candidates (default: twice the training images)."""
    iterations: int | None = None
    """Steps (default: 2500, or the preset's)."""
    balance: str = "half"
    """Labels of the candidates: half (as many of each), true (an oracle), or search (30, 50 and 70 percent positive,
    ranked without the training set)."""
    from_initial: bool = False
    """Explain the difference from the initial weights instead of the weights (Loo et al.), which the attacker must then
    know; victims only."""
    precision: str = "float32"
    """float32, compensated (sums that are compared with the weights in float64), tf32x3 (on CUDA: float32 products by tensor
    cores in three parts) or float64."""

    restarts: int = 1
    """Initial candidates to start from, each a run of its own."""
    sweep: int = 0
    """Random settings around the preset, in place of restarts; 0 leaves it out."""
    rank: str = "blind"
    """Which of several runs is shown: blind (the smallest residual) or oracle (the most images found, which only who has
    the training set can know)."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: reconstruct-DATA)."""
    device: str = "auto"
    """Where it runs: auto (a GPU if there is one), cpu or cuda."""
    seed: int = 0
    """Seed of the images drawn, the initial weights and the candidates."""

    def __post_init__(self) -> None:
        for name in ("positive", "hidden"):  # lists, where they come from YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, accepted in (
            ("device", _DEVICES),
            ("task", _TASKS),
            ("schedule", _SCHEDULES),
            ("balance", _BALANCES),
            ("rank", _RANKS),
            ("precision", _PRECISIONS),
            ("preset", PRESETS),
        ):
            if getattr(self, name) not in accepted:
                raise UnknownNameError(name, getattr(self, name), accepted)
        for name, least in (("n", 2), ("held_out", 2), ("victims", 1), ("restarts", 1), ("sweep", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)}", f"give at least {least}")
        for name in ("m", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, f"{value}", "give at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError("hidden", f"{self.hidden}", "give the width of each hidden layer, at least 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError("weight_decay", f"{self.weight_decay}", "give a number from 0")
        if self.sweep and self.restarts > 1:
            raise InputError("sweep", "given beside restarts", "every setting of a sweep has a start of its own")
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        own = self.checkpoint is not None
        if own and (self.victims > 1 or self.from_initial):
            name = "victims" if self.victims > 1 else "from_initial"
            raise InputError(name, "given beside a checkpoint", "leave it out")
        if not own and (self.members is not None or self.model != "paper"):
            name = "members" if self.members is not None else "model"
            raise InputError(name, "given without a checkpoint", "add --checkpoint FILE")
        for name, oracle in (("rank", "oracle"), ("balance", "true")):
            if own and self.members is None and getattr(self, name) == oracle:
                raise InputError(name, f"{oracle} without the training set", "add --members FILE, or leave it out")

    @property
    def run_name(self) -> str:
        """The run's name: ``name``, else one made from the data set's."""
        return self.name or f"reconstruct-{Path(self.data).stem.replace(':', '-')}"

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        return Path(self.out) if self.out is not None else Path("runs") / self.run_name
