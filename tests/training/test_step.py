"""One step: optimisers as torch has them, clipping, and the half-precision paths (which autocast offers on CPUs too)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmem.training import Recipe
from fastmem.training.step import Step

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 6, generator=generator), torch.randint(0, 3, (10,), generator=generator)


OPTIMIZERS = {
    "sgd": (Recipe(nesterov=True, weight_decay=0.1), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (Recipe(optimizer="adam", weight_decay=0.1), torch.optim.Adam, {}),
    "adamw": (Recipe(optimizer="adamw", weight_decay=0.1), torch.optim.AdamW, {}),
}


@pytest.mark.parametrize(("recipe", "kind", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_as_torch_does(recipe: Recipe, kind: type, options: dict) -> None:
    model, (x, y) = network(), batch()
    twin = copy.deepcopy(model)
    optimizer = kind(twin.parameters(), lr=1.0, weight_decay=0.1, **options)
    step = Step(model, recipe, CPU)
    for rate in (0.1, 0.05, 0.01):
        loss = step(x, y, rate)
        expected = F.cross_entropy(twin(x), y)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def change(recipe: Recipe, rate: float = 1.0) -> torch.Tensor:
    """By how much one step moves the weights."""
    model, (x, y) = network(), batch()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    Step(model, recipe, CPU)(x, y, rate)
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


def test_clipping_shortens_long_gradients_and_keeps_their_direction() -> None:
    free, clipped, loose = (change(Recipe(clip_norm=norm)) for norm in (None, 1e-3, 1e3))
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-4)
    assert float(F.cosine_similarity(free, clipped, dim=0)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(free, loose)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 3e-3)])
@pytest.mark.parametrize("norm", [None, 1e-3])
def test_half_precision_takes_nearly_the_same_step(precision: str, tolerance: float, norm: float | None) -> None:
    full = change(Recipe(clip_norm=norm))
    half = change(Recipe(clip_norm=norm, mixed_precision=precision))  # type: ignore[arg-type]
    difference = float((full - half).norm() / full.norm())
    assert 0 < difference < tolerance


def test_what_is_frozen_stays() -> None:
    model, (x, y) = network(), batch()
    next(model.parameters()).requires_grad_(False)
    before = next(model.parameters()).clone()
    Step(model, Recipe(), CPU)(x, y, 0.1)
    assert torch.equal(next(model.parameters()), before)
