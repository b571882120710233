"""A small problem that the tests of training share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastmem.data import Dataset, rank_design
from fastmem.models import build_model
from fastmem.training import Recipe, TrainedModel, train_models


@dataclass
class Problem:
    """Images of three classes that a network can learn, and a way to train on them."""

    data: Dataset
    keep: Tensor
    epochs: list[tuple[int, int, float]] = field(default_factory=list)

    def build(self, seed: int, name: str = "mlp", **options: Any) -> nn.Module:
        options = {"hidden": (12,)} | options if name == "mlp" else options
        return build_model(name, self.data.input_shape, self.data.num_classes, seed, **options)

    def train(
        self,
        recipe: Recipe,
        models: range = range(1),
        build: Callable[[int], nn.Module] | None = None,
        **options: Any,
    ) -> list[TrainedModel]:
        """Train the models with these places; a model's seed is its place plus 100."""
        return train_models(
            build or self.build,
            self.data.x,
            self.data.y,
            self.keep[list(models)],
            recipe,
            [index + 100 for index in models],
            self.data.channel_stats(),
            on_epoch=lambda *event: self.epochs.append(event),
            **options,
        )

    @staticmethod
    def same(first: TrainedModel, second: TrainedModel) -> bool:
        """Whether two trainings gave the same bytes."""
        return (
            first.state.keys() == second.state.keys()
            and all(torch.equal(first.state[name], second.state[name]) for name in first.state)
            and first.history == second.history
            and first.train_accuracy == second.train_accuracy
        )

    def builder(self, name: str, **options: Any) -> Callable[[int], nn.Module]:
        return partial(self.build, name=name, **options)


@pytest.fixture
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    centres = torch.randint(0, 256, (3, 2, 8, 8), generator=generator)
    noise = torch.randint(-60, 61, (120, 2, 8, 8), generator=generator)
    x = (centres[y] + noise).clamp(0, 255).to(torch.uint8)
    return Problem(Dataset("three", x, y, 3), torch.from_numpy(rank_design(8, 120, 1)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products in several threads on a busy machine take many times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
