"""What decides a few-shot study, in one frozen dataclass: the command line, the YAML file and Python fill the same fields.

The first sentence of each field's docstring is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.models.shape import LanguageShape
from fastmem.studies.keys import split_keys
from fastmem.training.recipe import Recipe

__all__ = ["OPTION_GROUPS", "TASK_NAMES", "FewShotConfig"]

TASK_NAMES = ("images", "text")
DEVICE_NAMES = ("auto", "cpu", "cuda")
_ENGINES = ("local", "ray")

OPTION_GROUPS = {
    "Data": ("task", "data", "data_root", "text", "pool", "population", "bystanders"),
    "Models and training": ("model", "model_args", "num_models", "targets"),
    "The attacker": ("variants", "shots", "n_val", "n_query", "episodes", "finetune_episodes", "features"),
    "Where it runs": ("device", "workers", "engine", "ray_address"),
    "The run": ("out", "name", "seed"),
}


def _text_recipe() -> Recipe:
    return Recipe(optimizer="adamw", learning_rate=1e-3, epochs=15, batch_size=16, warmup_epochs=0.5, clip_norm=1.0)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """A few-shot study: how much leaks to an attacker who knows only a handful of members?"""

    task: str = "images"
    """What is attacked: images (a classifier) or text (a language model)."""
    data: str = "digits"
    """Data set for images: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with
    one sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    text: Path | None = None
    """UTF-8 text file for --task text; members and non-members are random blocks of it."""
    pool: int | None = None
    """Records that are trained on and attacked; each model trains on half of them (default: 4/7 of the data, up to
    10000 images or 1200 blocks)."""
    population: int | None = None
    """Records that no model trains on; RMIA compares with them (default: what is left, up to the pool's size)."""
    bystanders: int | None = None
    """Records that the blind model trains on (default: half the pool)."""

    model: str = "mlp"
    """Network for images: mlp, cnn, resnet18, wrn28-2, or package.module:Class called with (input_shape,
    num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    num_models: int | None = None
    """Models that train on halves of the pool, an even number or 1: the targets, and the shadow models of the
    attacks that few-shot is compared with (default: 16 for images; 1 for text, so without those attacks)."""
    targets: int = 1
    """How many of the models to attack, the first ones; episodes are shared out among them."""
    recipe: Recipe = field(default_factory=Recipe)
    """How each classifier is trained."""
    language: LanguageShape = field(default_factory=LanguageShape)
    """The language model and its records, for --task text."""
    text_recipe: Recipe = field(default_factory=_text_recipe)
    """How each language model is trained."""

    variants: str | tuple[str, ...] = "simpleshot,laplacian,tim,finetune_head"
    """Methods, comma-separated: simpleshot, laplacian, tim, finetune_head, and finetune (trains every weight of a
    copy of the network, as published: slow)."""
    shots: str | int | tuple[int, ...] = "1,5,10"
    """Known records of each kind, comma-separated."""
    n_val: int = 15
    """Further known records of each kind, to tune on."""
    n_query: int = 15
    """Records of each kind asked about in an episode."""
    episodes: int = 500
    """Random draws of known records and questions."""
    finetune_episodes: int | None = None
    """Episodes of finetune, each of which trains copies of the network (default: 50 for images, 6 for text)."""
    features: str = "auto"
    """What the attacker reads: penultimate (white box), logits (black box), any layer by name, for text also
    statistics of the answers; or an .npz file with features [N, d] and members [N], which needs no model (default:
    penultimate for images, statistics for text)."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: few-shot-DATA)."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu or cuda."""
    workers: int | None = None
    """Processes that work at the same time, one thread each (default: one a core; 1 on a GPU)."""
    engine: str = "local"
    """Where tasks run: local (worker processes of this machine) or ray (its machines must see the run's folder)."""
    ray_address: str | None = None
    """A Ray cluster that is there: auto, host:6379 or ray://host:10001 (default: Ray is started on this machine)."""
    seed: int = 0
    """Seed of the split, the models, the episodes and the controls."""

    def __post_init__(self) -> None:
        for argument, given, valid in (
            ("task", self.task, TASK_NAMES),
            ("device", self.device, DEVICE_NAMES),
            ("engine", self.engine, _ENGINES),
        ):
            if given not in valid:
                raise UnknownNameError(argument, given, valid)
        for argument, value, least in (
            ("n_val", self.n_val, 2),
            ("n_query", self.n_query, 2),
            ("episodes", self.episodes, 2),
            ("finetune_episodes", self.whole_episodes, 2),
            ("targets", self.targets, 1),
            ("seed", self.seed, 0),
            ("workers", self.workers or 1, 1),
        ):
            if value < least:
                raise InputError(argument, f"{value}", f"give at least {least}")
        if self.num_models is not None and (self.num_models < 1 or (self.num_models % 2 and self.num_models > 1)):
            raise InputError("num_models", f"{self.num_models}", "give an even number, or 1 for the target alone")
        if self.targets > self.models:
            raise InputError("targets", f"{self.targets}", f"there are {self.models} models")
        if self.task == "text" and self.text is None and not self.from_file:
            raise InputError("text", "not given for --task text", "name a UTF-8 text file: --text FILE")
        if self.task == "images" and self.text is not None:
            raise InputError("text", f"{self.text} with --task images", "give --task text, or leave it out")
        _ = self.shot_counts

    @property
    def variant_keys(self) -> tuple[str, ...]:
        """The methods asked for."""
        return split_keys(self.variants)

    @property
    def shot_counts(self) -> tuple[int, ...]:
        """The numbers of shots, ascending, each once.

        Raises:
            InputError: If one is no whole number from 1.
        """
        given = self.shots.split(",") if isinstance(self.shots, str) else self.shots
        parts = [given] if isinstance(given, int) else list(given)
        try:
            counts = sorted({int(part) for part in parts})
        except ValueError:
            counts = []
        if not counts or counts[0] < 1:
            raise InputError("shots", f"{self.shots!r}", "give whole numbers from 1, as in 1,5,10")
        return tuple(counts)

    @property
    def models(self) -> int:
        """Models that train on halves of the pool."""
        return self.num_models or (16 if self.task == "images" else 1)

    @property
    def whole_episodes(self) -> int:
        """Episodes of methods that train the whole network."""
        return (50 if self.task == "images" else 6) if self.finetune_episodes is None else self.finetune_episodes

    @property
    def from_file(self) -> bool:
        """Whether features come from a file, so that nothing is trained."""
        return self.features.endswith(".npz")

    @property
    def subject(self) -> str:
        """What is attacked, in a word."""
        if self.from_file:
            return Path(self.features).stem
        return (self.text or Path("text")).stem if self.task == "text" else Path(self.data).stem.replace(":", "-")

    @property
    def run_name(self) -> str:
        """The run's name: ``name``, else one made from what is attacked."""
        return self.name or f"few-shot-{self.subject}"

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        return Path(self.out) if self.out is not None else Path("runs") / self.run_name
