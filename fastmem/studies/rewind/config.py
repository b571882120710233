"""What decides a rewinding study, in one frozen dataclass; the docstring of a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.keys import split_keys
from fastmem.training.recipe import Recipe

__all__ = ["METHODS", "OPTION_GROUPS", "RewindConfig"]

DEVICE_NAMES = ("auto", "cpu", "cuda")
# Those of fastmem.engine and fastmem.defenses, which --help has no time to import.
ENGINE_NAMES = ("local", "ray")
LOSS_NAMES = ("ce", "relaxloss", "label_smoothing", "hamp", "ccl")
BATCH_NORM_RULES = ("update", "recalibrate", "freeze")
SCOPES = ("global", "layer")
KL_DIRECTIONS = ("init_to_current", "current_to_init")

#: What is compared, with what it is; "none" is always there.
METHODS = {
    "none": "No defence",
    "early_stopping": "Early stopping",
    "relaxloss": "RelaxLoss from scratch",
    "tune": "Plain fine-tuning (cross-entropy)",
    "tune_only": "Fine-tuning without rewinding",
    "cwrf": "Rewound, frozen, tuned (A3, CWRF)",
    "zero_tune": "Zeroed, frozen, tuned (A1)",
    "rewind_tune": "Rewound, they alone tuned (A2)",
    "rewind_only": "Rewound, not tuned",
    "random": "A3, random weights",
    "tfo": "A3, by learnability (TFO)",
    "weight": "A3, by |w|",
    "past": "A3, by PAST",
    "kl_only": "A3, by KL alone (no member seen)",
    "dp_sgd": "DP-SGD from scratch",
}
_ON_REQUEST = ("dp_sgd",)

OPTION_GROUPS = {
    "Data": ("data", "data_root", "pool", "reference_size", "validation", "test"),
    "Models and training": ("model", "model_args", "num_models"),
    "A model of your own": ("checkpoint", "initial", "initial_seed", "members", "reference", "input_mean", "input_std"),
    "Scores": ("mix", "score_steps", "score_learning_rate", "kl_direction", "scope", "norms", "biases", "entangled"),
    "Rewinding and tuning": (
        "methods",
        "fractions",
        "control_fraction",
        "tune_epochs",
        "tune_learning_rate",
        "loss",
        "loss_args",
        "relax_alpha",
        "batch_norm",
        "patience",
        "noise",
        "clip",
    ),
    "Attacks": ("attacks",),
    "The run": ("out", "name", "seed"),
    "Where it runs": ("device", "workers", "engine", "ray_address"),
}


@dataclass(frozen=True, kw_only=True)
class RewindConfig:
    """Do a few weights carry the privacy risk, and does rewinding them help?"""

    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with one
    sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    pool: int | None = None
    """Records under attack, each in half of the models (default: 4/7 of all, at most 10000)."""
    reference_size: int | None = None
    """Records that no model trains on and scores are computed with; no attack is judged by them (default: 1000, less of
    a small set)."""
    validation: int | None = None
    """Further such records, which early stopping watches (default: 1000, less of a small set)."""
    test: int | None = None
    """Further such records, for accuracy and RMIA's population (default: what is left, at most as many as the pool)."""

    model: str = "mlp"
    """Network: mlp, cnn, resnet18, wrn28-2, vit, or package.module:Class called with (input_shape, num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    num_models: int = 32
    """Models, an even number; each goes through everything, and is attacked with the help of the others."""
    recipe: Recipe = field(default_factory=Recipe)
    """How each model is trained before it is repaired."""

    checkpoint: str | None = None
    """A trained model of your own to repair (.safetensors, or a state dict); --num-models others of the same recipe go
    the same way, so that it can be attacked; 0 leaves them out."""
    initial: str | None = None
    """Its weights before training (.safetensors, or a state dict), to which weights are rewound."""
    initial_seed: int | None = None
    """Where those are lost and fastmem built the model: the seed that it was built from."""
    members: str | None = None
    """Which records of --data it was trained on: a .npy file, bool, or record numbers."""
    reference: str | None = None
    """Which records to take as the reference: a .npy file, bool, or record numbers (default: drawn at random)."""
    input_mean: tuple[float, ...] | None = None
    """Mean that its inputs were normalised by, a value a channel, of pixels from 0 to 1 (default: that of all of --data)."""
    input_std: tuple[float, ...] | None = None
    """Standard deviation, likewise."""

    mix: float = 0.5
    """Share of the KL term in the loss of the privacy score (PVE), 0 to 1."""
    score_steps: int = 200
    """Steps along which scores add up."""
    score_learning_rate: float = 1e-3
    """Learning rate of these steps."""
    kl_direction: str = "init_to_current"
    """KL(untrained || now), init_to_current, or current_to_init."""
    scope: str = "global"
    """Rank all weights together (global), or each tensor's by themselves (layer)."""
    norms: bool = False
    """Whether weights of normalisation layers may be rewound."""
    biases: bool = False
    """Whether biases may."""
    entangled: int = 4
    """Models in which the scores are compared with each other, the first ones."""

    methods: str | tuple[str, ...] = "all"
    """What to compare, comma-separated: early_stopping, relaxloss, tune, tune_only, cwrf, zero_tune, rewind_tune,
    rewind_only, random, tfo, weight, past, kl_only, dp_sgd, or all but the last."""
    fractions: tuple[float, ...] = (0.001, 0.01, 0.05)
    """Shares of the weights that cwrf rewinds."""
    control_fraction: float = 0.01
    """Share that the ablations and controls rewind, and cwrf in the repaired copy of a checkpoint."""
    tune_epochs: int = 10
    """Epochs of fine-tuning; what trains from scratch instead gets as many on top."""
    tune_learning_rate: float | None = None
    """Its largest learning rate (default: the recipe's)."""
    loss: str = "relaxloss"
    """What fine-tuning minimises: ce, relaxloss, label_smoothing, hamp or ccl."""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Options of the loss, for example --loss-args.smoothing 0.2."""
    relax_alpha: float | None = None
    """Training loss that RelaxLoss keeps, in nats (default: the first trained model's loss on the validation records, at
    which members would look like others)."""
    batch_norm: str = "update"
    """Running statistics of batch normalisation in fine-tuning: update, recalibrate (then replaced by the mean over all
    members) or freeze."""
    patience: int = 3
    """Early stopping: epochs without a lower validation loss."""
    noise: float = 1.0
    """DP-SGD: standard deviation of the noise, in units of the clipping norm."""
    clip: float = 1.0
    """DP-SGD: largest norm of a record's gradient."""

    attacks: str | tuple[str, ...] = "lira_online_fixed,rmia_online,loss"
    """Attacks, comma-separated, of those that fastmem attack --list shows."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: rewind-DATA)."""
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
    """Seed of the split, the models, the scores and fine-tuning."""

    def __post_init__(self) -> None:
        for name in ("fractions", "input_mean", "input_std"):  # lists, where they come from YAML
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(values))
        for name, accepted in (
            ("device", DEVICE_NAMES),
            ("engine", ENGINE_NAMES),
            ("loss", LOSS_NAMES),
            ("batch_norm", BATCH_NORM_RULES),
            ("scope", SCOPES),
            ("kl_direction", KL_DIRECTIONS),
        ):
            if getattr(self, name) not in accepted:
                raise UnknownNameError(name, getattr(self, name), accepted)
        if self.engine != "ray" and self.ray_address is not None:
            raise InputError("ray_address", f"{self.ray_address} with the {self.engine} engine", "add --engine ray")
        for key in split_keys(self.methods):
            if key not in METHODS and key != "all":
                raise UnknownNameError("methods", key, [*METHODS, "all"])
        self._check_numbers()
        self._check_own()

    @property
    def method_keys(self) -> tuple[str, ...]:
        """The methods to compare, in the order of :data:`METHODS`."""
        asked = split_keys(self.methods)
        every = [key for key in METHODS if key not in _ON_REQUEST] if "all" in asked else []
        wanted = {"none", *asked, *every}
        # With cross-entropy as the loss, fine-tuning without rewinding is plain fine-tuning.
        return tuple(key for key in METHODS if key in wanted and not (key == "tune_only" and self.loss == "ce"))

    @property
    def attack_keys(self) -> tuple[str, ...]:
        """The attacks asked for."""
        return split_keys(self.attacks)

    @property
    def loss_options(self) -> dict[str, Any]:
        """Options of the loss, RelaxLoss's alpha among them."""
        return ({"alpha": self.relax_alpha} if self.loss == "relaxloss" else {}) | self.loss_args

    @property
    def tuning(self) -> Recipe:
        """How models are fine-tuned: as they were trained, but shorter, from a new start of the learning rate."""
        return replace(
            self.recipe,
            epochs=self.tune_epochs,
            learning_rate=self.tune_learning_rate or self.recipe.peak_rate,
            schedule="cosine",
            milestones=(),
            warmup_epochs=0.0,
            label_smoothing=0.0,
            stop_at_train_accuracy=None,
            patience=None,
        )

    @property
    def longer(self) -> Recipe:
        """The recipe of what trains from scratch, at the compute of training and fine-tuning together."""
        epochs = self.recipe.epochs + self.tune_epochs
        return replace(self.recipe, epochs=epochs, label_smoothing=0.0, stop_at_train_accuracy=None, patience=None)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        name = self.name or f"rewind-{Path(self.data).stem if '/' in self.data or '.' in self.data else self.data}"
        return self.out if self.out is not None else Path("runs") / name.replace(":", "-")

    def _check_numbers(self) -> None:
        for name, least in (
            ("pool", 4),
            ("reference_size", 1),
            ("validation", 1),
            ("test", 2),
            ("score_steps", 1),
            ("entangled", 1),
            ("tune_epochs", 1),
            ("patience", 1),
            ("workers", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(name, f"{value}", f"give at least {least}")
        if not 0 <= self.mix <= 1:
            raise InputError("mix", f"{self.mix}", "give a share from 0 to 1")
        if not self.fractions:
            raise InputError("fractions", "none", "give at least one, such as [0.01]")
        for name, value in (
            *(("fractions", value) for value in self.fractions),
            ("control_fraction", self.control_fraction),
        ):
            if not 0 < value < 1:
                raise InputError(name, f"{value}", "give shares above 0 and below 1, such as 0.01")
        for name in ("score_learning_rate", "tune_learning_rate", "relax_alpha", "noise", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(name, f"{value}", "give a number above 0")
        if self.recipe.mixed_precision != "none":
            raise InputError(
                "recipe.mixed_precision", self.recipe.mixed_precision, "take none: weights are compared bit by bit"
            )
        if self.recipe.patience is not None:
            raise InputError(
                "recipe.patience", f"{self.recipe.patience}", "leave it out: --patience is for the arm that stops"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", f"{self.seed}", "give a number from 0 to 2^63 - 1")
        least = 4 if self.checkpoint is None else 0
        if self.num_models < least or self.num_models % 2:
            raise InputError("num_models", f"{self.num_models}", f"give an even number, at least {least}")

    def _check_own(self) -> None:
        if self.checkpoint is None:
            for name in OPTION_GROUPS["A model of your own"][1:]:
                if getattr(self, name) is not None:
                    raise InputError(name, f"{getattr(self, name)} without a checkpoint", "add --checkpoint FILE")
            return
        if (self.input_mean is None) != (self.input_std is None):
            raise InputError("input_mean, input_std", "one without the other", "give both or none")
        if self.members is None:
            raise InputError(
                "members", "not given for the checkpoint", "add --members FILE.npy: what it was trained on"
            )
        if self.initial is not None and self.initial_seed is not None:
            raise InputError("initial_seed", "given beside --initial", "give one of them")
        if self.initial is None and self.initial_seed is None:
            raise InputError(
                "initial",
                "the weights before training are missing: rewinding puts weights back to them, and no other values will do",
                "add --initial FILE; or --initial-seed N where fastmem built this --model from seed N, which gives the same "
                "weights again (any other seed gives another network's, and the report says so)",
            )
