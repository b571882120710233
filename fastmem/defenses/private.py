"""Fine-tuning by DP-SGD, through Opacus (the extra ``dp``).

What epsilon covers: the steps of this training and nothing before them. A network that was trained on the same records
without noise, or whose frozen weights were chosen by looking at them, has told of them already.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmem.defenses.freezing import FrozenWeights
from fastmem.defenses.importance import Records
from fastmem.defenses.losses import Loss, RelaxLoss
from fastmem.defenses.tuning import require_recipe
from fastmem.errors import InputError
from fastmem.training import DivergenceError, Recipe
from fastmem.training.job import stream_seed
from fastmem.training.plain import own_randomness
from fastmem.training.step import make_optimizer

__all__ = ["Privacy", "fine_tune_privately", "require_opacus"]


@dataclass(frozen=True)
class Privacy:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133).

    Args:
        noise: Standard deviation of the noise, in units of ``clip_norm``.
        clip_norm: Largest norm of a record's gradient.
        delta: At which epsilon is given.
    """

    noise: float = 1.0
    clip_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("noise", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(name, f"{getattr(self, name)}", "give a number above 0")
        if not 0 < self.delta < 1:
            raise InputError("delta", f"{self.delta}", "give a probability, above 0 and below 1")


def require_opacus() -> Any:
    """The package.

    Raises:
        InputError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import opacus  # type: ignore[import-not-found]
            import opacus.validators  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("dp", f"DP-SGD needs Opacus ({error})", "pip install 'fastmem[dp]'") from error
    return opacus


def fine_tune_privately(
    model: nn.Module,
    members: Records,
    recipe: Recipe,
    loss: Loss,
    privacy: Privacy,
    frozen: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[list[float], float]:
    """Trains a network on by DP-SGD; frozen weights keep their values bit for bit and count in no record's norm.

    Batches are drawn as the accountant assumes: every record independently, ``batch_size`` of them on average. Noise
    comes from torch's ordinary generator, which suits experiments; it is no secret to an adversary.

    Args:
        model: Changed in place.
        members: What it is trained on.
        recipe: Optimiser, rates, epochs and mean batch size; ``clip_norm`` and augmentation have no place here.
        loss: A mean over records.
        privacy: Noise and clipping.
        frozen: As in :func:`fastmem.defenses.tuning.fine_tune`.
        seed: Of batches and noise.

    Returns:
        Mean loss of each epoch, and the epsilon that these steps spent at ``privacy.delta``.

    Raises:
        InputError: Opacus is missing or does not take the network (batch normalisation mixes records), or the loss is
            no mean over records.
        DivergenceError: The loss became NaN or infinite.
    """
    opacus = require_opacus()
    require_recipe(recipe, "update")
    if isinstance(loss, RelaxLoss):
        raise InputError("loss", "relaxloss with DP-SGD", "it looks at a batch's mean loss; take another one")
    if recipe.augment != "none":
        raise InputError("augment", f"{recipe.augment} with DP-SGD", "leave it out")
    if errors := opacus.validators.ModuleValidator.validate(model.train(), strict=False):
        raise InputError("model", f"Opacus does not take {type(model).__name__} ({errors[0]})", "take another network")
    like = next(model.parameters())
    held = FrozenWeights(model, frozen or {})
    history = []
    with own_randomness(like.device) as reseed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns of its insecure mode, and of its own hooks
        reseed(stream_seed(seed, "dropout"))
        order = torch.Generator().manual_seed(stream_seed(seed, "order"))
        noise = torch.Generator(like.device).manual_seed(stream_seed(seed, "noise"))
        x, y = members.batch(torch.arange(len(members)), like)
        loader = DataLoader(TensorDataset(x, y), batch_size=recipe.batch_size, shuffle=True, generator=order)
        engine = opacus.PrivacyEngine(accountant="rdp")
        wrapped, optimizer, loader = engine.make_private(
            module=model,
            optimizer=make_optimizer([value for value in model.parameters() if value.requires_grad], recipe),
            data_loader=loader,
            noise_multiplier=privacy.noise,
            max_grad_norm=privacy.clip_norm,
            noise_generator=noise,
        )
        rates = iter(recipe.rates(len(loader)))
        for epoch in range(recipe.epochs):
            losses = []
            for batch, labels in loader:
                for group in optimizer.param_groups:
                    group["lr"] = next(rates)
                optimizer.zero_grad()
                if len(labels) == 0:  # a draw of nobody is a step of noise alone
                    continue
                value = loss(wrapped(batch), labels, epoch)
                value.backward()
                held.mask_gradients()
                optimizer.step()
                held.restore()
                losses.append(value.detach())
            mean = float(torch.stack(losses).double().mean()) if losses else 0.0
            if not abs(mean) < float("inf"):
                raise DivergenceError.of(0, seed, epoch + 1, mean, recipe)
            history.append(mean)
        epsilon = float(engine.get_epsilon(privacy.delta))
        wrapped.to_standard_module() if hasattr(wrapped, "to_standard_module") else wrapped.remove_hooks()
    for parameter in model.parameters():
        for name in ("grad_sample", "summed_grad", "_forward_counter"):
            if hasattr(parameter, name):
                delattr(parameter, name)
    model.eval()
    held.require_unchanged()
    return history, epsilon
