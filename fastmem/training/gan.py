"""Training of a DCGAN that survives being killed: its checkpoint holds everything that the next step depends on.

The non-saturating game of Goodfellow et al. (2014) with the settings of Radford, Metz and Chintala (2016): binary
cross-entropy, Adam at 2e-4 with beta1 .5, one step of the discriminator, then one of the generator. Real labels are .9
(one-sided smoothing, Salimans et al. 2016), without which the discriminator of few records wins outright.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmem.errors import FastmemError, InputError, StoreError
from fastmem.models.dcgan import Discriminator, Generator
from fastmem.training.checkpoint import load_checkpoint, load_into, save_checkpoint
from fastmem.training.job import stream_seed

__all__ = ["GanRecipe", "TrainedGan", "load_gan", "sample_images", "train_gan"]

_METADATA = "fastmem_gan"
_REAL = 0.9
_GRID = 32  # images of each sample grid
_DRAW_BATCH = 256


@dataclass(frozen=True)
class GanRecipe:
    """How a DCGAN is trained.

    Args:
        steps: Steps of each network.
        batch_size: Real and generated images a step.
        learning_rate: Of Adam, for both networks.
        latent: Length of the noise vector.
        width: Channels of the widest images; deeper layers have multiples of it.
        grids: Sample grids kept on the way, evenly spaced; the last one is of the finished generator.
        checkpoint_every: Steps between checkpoints: what a kill costs at most.

    Raises:
        InputError: If a number is out of range.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-4
    latent: int = 64
    width: int = 32
    grids: int = 4
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "latent", "width", "grids", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(name, f"{getattr(self, name)}", "give at least 1")
        if self.batch_size < 2:
            raise InputError("batch_size", f"{self.batch_size}", "batch normalisation needs at least 2")
        if not 0 < self.learning_rate < 1:
            raise InputError("learning_rate", f"{self.learning_rate}", "give a number between 0 and 1")


@dataclass(frozen=True, eq=False)
class TrainedGan:
    """What a checkpoint holds.

    Attributes:
        generator: In eval mode, on the CPU.
        step: Steps done.
        history: Loss of the discriminator and of the generator at each step (nats), float32 [steps, 2].
        grids: Sample grids, uint8 [G, 32, C, H, W], of the same noise each.
        grid_steps: After how many steps each grid was made.
    """

    generator: Generator
    step: int
    history: Tensor
    grids: Tensor
    grid_steps: tuple[int, ...]


def train_gan(
    x: Tensor,
    recipe: GanRecipe,
    seed: int,
    checkpoint: Path,
    key: str = "",
    device: str | torch.device = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> TrainedGan:
    """Trains a DCGAN, or goes on where its checkpoint left off; on the CPU both give the same bytes.

    Args:
        x: uint8 images [N, C, H, W], at least 2.
        recipe: How to train.
        seed: Of the weights, the batches and the noise.
        checkpoint: The file; one that is damaged or of another ``key`` is begun anew.
        key: What the result depends on (:func:`fastmem.engine.content_key`).
        device: ``"cpu"`` or ``"cuda"``.
        on_step: Called with the number of steps done, after each.

    Raises:
        InputError: If the images do not suit a DCGAN.
        FastmemError: If a loss becomes NaN or infinite.
        StoreError: If the checkpoint cannot be written.
    """
    if len(x) < 2:
        raise InputError("generator", f"a DCGAN on {len(x)} records", "give it at least 2, better some hundreds")
    game = _Game(x, recipe, seed, torch.device(device))
    game.resume(checkpoint, key)
    while game.step < recipe.steps:
        game.play()
        if game.step % recipe.checkpoint_every == 0 or game.step == recipe.steps:
            game.save(checkpoint, key)
        if on_step is not None:
            on_step(game.step)
    return load_gan(checkpoint, x.shape[1:], recipe, key)


def load_gan(checkpoint: Path, input_shape: Sequence[int], recipe: GanRecipe, key: str = "") -> TrainedGan:
    """What :func:`train_gan` wrote, finished or not.

    Raises:
        StoreError: If there is no such file, or it is damaged or of another key.
    """
    state, about = _read(checkpoint, key)
    generator = Generator(input_shape, recipe.latent, recipe.width)
    load_into(generator, _part(state, "generator."), str(checkpoint))
    return TrainedGan(generator.eval(), about["step"], state["history"], state["grids"], tuple(about["grid_steps"]))


def sample_images(generator: Generator, count: int, seed: int) -> Tensor:
    """Images of a generator in eval mode; the first ones do not depend on how many are drawn.

    Args:
        generator: On any device.
        count: N.
        seed: Of the noise.

    Returns:
        uint8 [N, C, H, W] on the CPU.
    """
    device = next(generator.parameters()).device
    noise = torch.randn(count, generator.latent, generator=torch.Generator().manual_seed(seed))
    return torch.cat([generator.images(part.to(device)).cpu() for part in noise.split(_DRAW_BATCH)])


class _Game:
    """Both networks, their optimisers and the state of the random numbers."""

    def __init__(self, x: Tensor, recipe: GanRecipe, seed: int, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.x = x.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "gan"))
            self.generator = Generator(x.shape[1:], recipe.latent, recipe.width).to(device)
            self.discriminator = Discriminator(x.shape[1:], recipe.width).to(device)
        self.players: dict[str, tuple[nn.Module, torch.optim.Adam]] = {
            "generator": (self.generator, self._adam(self.generator)),
            "discriminator": (self.discriminator, self._adam(self.discriminator)),
        }
        self.random = torch.Generator().manual_seed(stream_seed(seed, "gan-batches"))
        shown = torch.Generator().manual_seed(stream_seed(seed, "gan-grid"))
        self.shown = torch.randn(_GRID, recipe.latent, generator=shown).to(device)
        self.step = 0
        self.history = torch.zeros(recipe.steps, 2)
        self.grids: list[Tensor] = []
        self.grid_steps: list[int] = []

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.recipe.learning_rate, betas=(0.5, 0.999))

    def play(self) -> None:
        """One step of the discriminator and one of the generator."""
        size = min(self.recipe.batch_size, len(self.x))
        rows = torch.randperm(len(self.x), generator=self.random)[:size]
        noise = torch.randn(size, self.recipe.latent, generator=self.random).to(self.device)
        real = self.x[rows.to(self.device)].float() / 127.5 - 1
        fake = self.generator(noise)
        (_, of_generator), (_, of_discriminator) = self.players["generator"], self.players["discriminator"]
        lost = _loss(self.discriminator(real), _REAL) + _loss(self.discriminator(fake.detach()), 0.0)
        of_discriminator.zero_grad()
        lost.backward()
        of_discriminator.step()
        seen_through = _loss(self.discriminator(fake), 1.0)
        of_generator.zero_grad()
        seen_through.backward()
        of_generator.step()
        losses = torch.stack([lost.detach(), seen_through.detach()]).cpu()
        if not torch.isfinite(losses).all():
            raise FastmemError(
                "generator",
                f"the DCGAN diverged: its losses at step {self.step + 1} are {losses.tolist()}",
                "lower gan.learning_rate",
            )
        self.history[self.step] = losses
        self.step += 1
        due = [round(self.recipe.steps * (place + 1) / self.recipe.grids) for place in range(self.recipe.grids)]
        if self.step in due:
            self.generator.eval()
            self.grids.append(self.generator.images(self.shown).cpu())
            self.grid_steps.append(self.step)
            self.generator.train()

    def save(self, checkpoint: Path, key: str) -> None:
        state: dict[str, Tensor] = {"history": self.history, "random": self.random.get_state()}
        shape = (0, _GRID, *self.x.shape[1:])
        state["grids"] = torch.stack(self.grids) if self.grids else torch.zeros(shape, dtype=torch.uint8)
        for name, (network, adam) in self.players.items():
            state |= {f"{name}.{entry}": value for entry, value in network.state_dict().items()}
            for place, moments in adam.state_dict()["state"].items():
                state |= {f"{name}-adam.{place}.{entry}": value for entry, value in moments.items()}
        about = {"key": key, "step": self.step, "grid_steps": self.grid_steps}
        save_checkpoint(checkpoint, state, {_METADATA: json.dumps(about)})

    def resume(self, checkpoint: Path, key: str) -> None:
        """Takes up a checkpoint, if there is one of this key."""
        try:
            state, about = _read(checkpoint, key)
        except StoreError:
            return
        for name, (network, adam) in self.players.items():
            load_into(network, _part(state, f"{name}."), str(checkpoint))
            moments: dict[int, dict[str, Tensor]] = {}
            for entry, value in _part(state, f"{name}-adam.").items():
                place, _, moment = entry.partition(".")
                moments.setdefault(int(place), {})[moment] = value
            adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
        self.step, self.history = about["step"], state["history"]
        self.grids, self.grid_steps = list(state["grids"]), list(about["grid_steps"])
        self.random.set_state(state["random"])


def _loss(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _read(checkpoint: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state, metadata = load_checkpoint(checkpoint)
    about = json.loads(metadata.get(_METADATA, "{}"))
    if about.get("key") != key:
        raise StoreError(str(checkpoint), "holds another generator", "train it again")
    return state, about


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
