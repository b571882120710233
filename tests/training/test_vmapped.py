"""Mapped packs equal single models in float64, batch normalisation included; here on the CPU, where they are not used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fastmem.training import Recipe, packs, train, vmapped
from fastmem.training.plain import PlainTrainer
from fastmem.training.vmapped import VmappedTrainer, why_not
from tests.training.test_stacked import by, furthest

if TYPE_CHECKING:
    from fastmem.training.job import Job
    from tests.training.conftest import Problem


train_pack = vmapped._train_pack


class _OnTheCPU(VmappedTrainer):
    def supports(self, job: Job, model: nn.Module) -> str | None:
        return why_not(job, model)


NETWORKS = {
    "mlp": ("mlp", {"activation": "gelu"}),
    "cnn": ("cnn", {"channels": 4, "hidden": 8}),
    "wide resnet": ("wrn28-2", {"depth": 10, "widen": 1}),
}
RECIPES = {
    "sgd": Recipe(
        batch_size=16, weight_decay=0.01, label_smoothing=0.1, augment="flip+crop", warmup_epochs=0.5, nesterov=True
    ),
    "adamw, clipped": Recipe(batch_size=32, optimizer="adamw", weight_decay=0.1, clip_norm=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("name", "options"), NETWORKS.values(), ids=NETWORKS)
def test_equals_one_model_at_a_time(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, name: str, options: dict, recipe: Recipe
) -> None:
    def doubles(seed: int) -> nn.Module:
        return problem.build(seed, name, **options).double()

    run = lambda: problem.train(replace(recipe, epochs=2), range(3), doubles)  # noqa: E731
    together, single = (by(trainer, monkeypatch, run) for trainer in (_OnTheCPU(), PlainTrainer()))
    assert furthest(together, single) < 1e-10
    assert together[0].state.keys() == single[0].state.keys()
    assert [model.train_accuracy for model in together] == [model.train_accuracy for model in single]


def test_the_comparison_above_notices_gradients_that_are_not_clipped(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lambda: problem.train(replace(RECIPES["adamw, clipped"], epochs=1, optimizer="sgd"), range(2))  # noqa: E731
    right = by(PlainTrainer(), monkeypatch, run)
    monkeypatch.setattr(vmapped, "_clip", lambda *_: None)
    assert furthest(by(_OnTheCPU(), monkeypatch, run), right) > 1e-4


def test_records_that_fill_up_batches_leave_statistics_and_gradients_alone(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem.keep[:3] = torch.arange(120) < torch.tensor([34, 41, 48])[:, None]
    problem.keep[3:5] = torch.arange(120) < torch.tensor([20, 32])[:, None]
    calls: list[int] = []
    monkeypatch.setattr(vmapped, "_train_pack", lambda job, pack: calls.append(len(pack)) or train_pack(job, pack))

    def doubles(seed: int) -> nn.Module:
        return problem.build(seed, "wrn28-2", depth=10, widen=1).double()

    run = lambda: problem.train(Recipe(epochs=2, batch_size=16, label_smoothing=0.1), range(5), doubles)  # noqa: E731
    together, single = (by(trainer, monkeypatch, run) for trainer in (_OnTheCPU(), PlainTrainer()))
    assert furthest(together, single) < 1e-10
    assert calls == [3, 2]


def test_packs_are_no_larger_than_the_device_allows(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_LARGEST_PACK", 2)
    run = lambda: problem.train(Recipe(epochs=1, batch_size=64), range(5))  # noqa: E731
    together, single = (by(trainer, monkeypatch, run) for trainer in (_OnTheCPU(), PlainTrainer()))
    assert furthest(together, single) < 1e-5


class _Own(nn.Sequential):
    pass


DECLINED = {
    "dropout in a layer": (Recipe(epochs=1), {"name": "mlp", "dropout": 0.1}),
    "dropout in a block": (Recipe(epochs=1), {"name": "wrn28-2", "depth": 10, "widen": 1, "dropout": 0.1}),
    "stopping": (Recipe(epochs=1, stop_at_train_accuracy=0.5), {}),
}


@pytest.mark.parametrize(("recipe", "options"), DECLINED.values(), ids=DECLINED)
def test_declines_what_would_not_be_equal(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, options: dict
) -> None:
    build = problem.builder(**({"name": "mlp"} | options))
    with pytest.raises(AssertionError, match="the plain trainer takes everything"):
        by(_OnTheCPU(), monkeypatch, lambda: problem.train(recipe, range(2), build))


def test_declines_a_users_own_network_and_the_cpu(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(seed: int) -> nn.Module:
        return _Own(*problem.build(seed).get_submodule("layers"))

    def bare_statistics(seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(128, affine=False), nn.Linear(128, 3))

    for trainer, build in ((_OnTheCPU(), own), (_OnTheCPU(), bare_statistics), (VmappedTrainer(), None)):
        monkeypatch.setattr(train, "_TRAINERS", (trainer,))
        with pytest.raises(AssertionError, match="takes everything"):
            problem.train(Recipe(epochs=1), range(2), build)
