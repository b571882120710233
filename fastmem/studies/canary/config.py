"""What decides a canary study, in one frozen dataclass: the command line, the YAML file and Python fill the same fields.

The first sentence of each field's docstring is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.keys import split_keys
from fastmem.training.recipe import Recipe

__all__ = ["OPTION_GROUPS", "CanaryConfig"]

_DEVICES = ("auto", "cpu", "cuda")
_ENGINES = ("local", "ray")
_MODES = ("opaque", "transparent")

OPTION_GROUPS = {
    "Data": ("data", "data_root", "pool", "held_out", "validation"),
    "The mark": ("feature", "offset", "mode", "canaries", "records", "copies"),
    "Models and training": ("model", "model_args", "regularise", "nulls"),
    "A model of your own": ("checkpoint", "black_box", "answers", "black_box_logits", "label"),
    "Scores": ("evaluation", "images", "variants", "controls", "control_kind", "level"),
    "The run": ("out", "name", "save_models", "seed"),
    "Where it runs": ("device", "workers", "engine", "ray_address"),
}


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """A canary study: does a mark that few training records carry leave a trace in the models trained on them?"""

    data: str = "digits"
    """Data set of images: digits, mnist, fashion-mnist, cifar10, cifar100, a .npz file with x and y, a folder with one
    sub-folder of images per class, or package.module:function that returns a fastmem Dataset."""
    data_root: str | None = None
    """Folder that holds the named data sets in torchvision's layout (default: the FASTMEM_DATA variable)."""
    pool: int | None = None
    """Records that models train on (default: 4/7 of the data, up to 10000)."""
    held_out: int | None = None
    """Records that no model trains on, to measure accuracy and to score marks on (default: what is left, up to the
    pool's size)."""
    validation: int | None = None
    """Records that early stopping watches (default: half the pool)."""

    feature: str = "auto"
    """The mark: a glyph such as A, E, X, plus, checker (5x5) or A3, H3, x3 (3x3), a picture file such as a PNG with
    transparency, or auto (A; A3 in images below 16 pixels)."""
    offset: tuple[int, int] = (1, 1)
    """Row and column of the mark's upper left pixel, as [1,1]."""
    mode: str = "opaque"
    """How the mark is written: opaque (zeros too) or transparent."""
    canaries: int = 10
    """Different records that carry the mark, each in models of its own."""
    records: tuple[int, ...] = ()
    """The canaries themselves, as record numbers of the pool, in place of drawn ones."""
    copies: str | tuple[int, ...] = "1"
    """Records of the canary's class that carry the mark in one model, comma-separated counts such as 1,10,100."""

    model: str = "mlp"
    """Network: mlp, cnn, resnet18, wrn28-2, or package.module:Class called with (input_shape, num_classes)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, for example --model-args.hidden [512,256]."""
    regularise: str | tuple[str, ...] = "none"
    """Training variants, comma-separated: none, dropout, batchnorm, weight-decay, augment, early-stopping, all
    (together)."""
    nulls: int = 20
    """Models that never see the mark, in each variant; each has a partner of the same seed for every count of
    copies."""
    recipe: Recipe = field(default_factory=Recipe)
    """How each model is trained, before a variant changes it."""

    checkpoint: Path | None = None
    """Score this safetensors file of --model, which may have learned the mark, beside null models trained here."""
    black_box: str | None = None
    """Score package.module:function, which maps uint8 images [B, C, H, W] to probabilities [B, classes], instead."""
    answers: Path | None = None
    """Score the answers in this .npz file, to the images that --questions writes, instead."""
    black_box_logits: bool = False
    """The black box, or the file of answers, gives logits."""
    label: int | None = None
    """The canary's label in a model of your own; without it, only variants that need none are shown."""

    evaluation: str = "held-out"
    """Images to score on: held-out, permuted (held-out ones, pixels shuffled), noise, or another data set, made grey
    and resized as needed."""
    images: int = 1000
    """How many of them, at most."""
    variants: str | tuple[str, ...] = "every"
    """Variants of the score, comma-separated, or every."""
    controls: int = 25
    """Control marks, which no model is trained on."""
    control_kind: str = "auto"
    """Kind of the control marks: mirror (symmetric, as much ink), permuted, bernoulli, glyphs, or auto (mirror;
    permuted where there are too few)."""
    level: float = 0.05
    """Level of the tests; the null models must be enough for p-values to reach it."""

    out: Path | None = None
    """Folder of this run (default: runs/NAME)."""
    name: str | None = None
    """Name of the run (default: canary-DATA)."""
    save_models: bool = True
    """Keep the models as safetensors."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu or cuda."""
    workers: int | None = None
    """Processes that train at the same time, one thread each (default: one a core; 1 on a GPU)."""
    engine: str = "local"
    """Where tasks run: local (worker processes of this machine) or ray (its machines must see the run's folder)."""
    ray_address: str | None = None
    """A Ray cluster that is there: auto, host:6379 or ray://host:10001 (default: Ray is started on this machine)."""
    seed: int = 0
    """Seed of the split, the canaries, the models, the patches and the controls."""

    def __post_init__(self) -> None:
        for name in ("offset", "records"):  # lists, where they come from YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, valid in (("device", _DEVICES), ("mode", _MODES), ("engine", _ENGINES)):
            given = getattr(self, name)
            if given not in valid:
                raise UnknownNameError(name, given, valid)
        for name, least in (("canaries", 1), ("nulls", 2), ("controls", 0), ("images", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)}", f"give at least {least}")
        if self.workers is not None and self.workers < 1:
            raise InputError("workers", f"{self.workers}", "give at least 1")
        if not 0 < self.level < 1:
            raise InputError("level", f"{self.level}", "give a share between 0 and 1, for example 0.05")
        own = [name for name in ("checkpoint", "black_box", "answers") if getattr(self, name) is not None]
        if len(own) > 1:
            raise InputError(own[1], f"given beside a {own[0]}", "give one of them")
        self.copy_counts  # noqa: B018 - refuses counts that are none

    @property
    def copy_counts(self) -> tuple[int, ...]:
        """The counts of marked records asked for; none where a model of the user's own is scored."""
        parts = self.copies.split(",") if isinstance(self.copies, str) else self.copies
        try:
            counts = tuple(dict.fromkeys(int(part) for part in parts))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1:
            raise InputError("copies", f"{self.copies!r}", "give counts of at least 1, for example 1,10,100")
        return () if self.own_model else counts

    @property
    def own_model(self) -> str | None:
        """The model of the user's own, if one is scored."""
        files = (str(path) for path in (self.checkpoint, self.answers) if path is not None)
        return self.black_box or next(files, None)

    @property
    def regularisers(self) -> tuple[str, ...]:
        """The training variants asked for."""
        return split_keys(self.regularise)

    @property
    def variant_keys(self) -> tuple[str, ...]:
        """The variants of the score asked for; ``("every",)`` for all."""
        return split_keys(self.variants)

    @property
    def run_name(self) -> str:
        """The run's name: ``name``, else one made from the data set's."""
        return self.name or f"canary-{Path(self.data).stem.replace(':', '-')}"

    @property
    def run_dir(self) -> Path:
        """The run's folder: ``out``, else ``runs/<name>``."""
        return Path(self.out) if self.out is not None else Path("runs") / self.run_name
