"""Packs of perceptrons equal single ones, whatever the pack; what they do not cover is declined with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fastmem.models.mlp import MLP
from fastmem.training import DivergenceError, Recipe, TrainedModel, stacked, train
from fastmem.training.plain import PlainTrainer
from fastmem.training.stacked import StackedTrainer

if TYPE_CHECKING:
    from tests.training.conftest import Problem


def by(trainer: object, monkeypatch: pytest.MonkeyPatch, run: Callable[[], list[TrainedModel]]) -> list[TrainedModel]:
    monkeypatch.setattr(train, "_TRAINERS", (trainer,))
    return run()


@pytest.fixture(autouse=True)
def not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_TRAINERS", (StackedTrainer(), PlainTrainer()))


RECIPES = {
    "default": Recipe(epochs=1, batch_size=16),
    "all at once": Recipe(
        epochs=1,
        batch_size=16,
        learning_rate=0.1,
        momentum=0.7,
        weight_decay=0.01,
        label_smoothing=0.1,
        augment="flip+crop",
        schedule="constant",
        warmup_epochs=0.5,
    ),
    "no momentum": Recipe(epochs=1, batch_size=50, momentum=0.0),
    "one batch": Recipe(epochs=1, batch_size=500),
}
SHAPES = {"linear": (), "one layer": (12,), "three layers": (9, 11, 7)}


def furthest(first: list[TrainedModel], second: list[TrainedModel]) -> float:
    """The largest difference between weights, and between losses."""
    weights = [
        float((a.state[k] - b.state[k]).abs().max()) for a, b in zip(first, second, strict=True) for k in a.state
    ]
    losses = [
        abs(x - y)
        for a, b in zip(first, second, strict=True)
        for x, y in zip(a.history["train_loss"], b.history["train_loss"], strict=True)
    ]
    return max(weights + losses)


@pytest.mark.parametrize("hidden", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_equals_one_model_at_a_time(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, hidden: tuple[int, ...]
) -> None:
    def doubles(seed: int) -> torch.nn.Module:
        return problem.build(seed, hidden=hidden).double()

    for build, epochs, tolerance in ((problem.builder("mlp", hidden=hidden), 1, 1e-5), (doubles, 3, 1e-10)):
        run = lambda build=build, epochs=epochs: problem.train(replace(recipe, epochs=epochs), range(8), build)  # noqa: E731
        packed, single = (by(trainer, monkeypatch, run) for trainer in (StackedTrainer(), PlainTrainer()))
        assert furthest(packed, single) < tolerance
        assert [model.epochs_run for model in packed] == [model.epochs_run for model in single]


def test_the_comparison_above_notices_a_wrong_step(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    right = by(PlainTrainer(), monkeypatch, lambda: problem.train(RECIPES["default"], range(2)))
    step = stacked._step
    monkeypatch.setattr(
        stacked, "_step", lambda layers, x, y, weight, rate, *more: step(layers, x, y, weight * 1.01, rate, *more)
    )
    wrong = by(StackedTrainer(), monkeypatch, lambda: problem.train(RECIPES["default"], range(2)))
    assert furthest(right, wrong) > 1e-4


def test_ends_at_the_same_place_after_many_epochs(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=30, batch_size=16)
    packed, single = (
        by(trainer, monkeypatch, lambda: problem.train(recipe, range(8)))
        for trainer in (StackedTrainer(), PlainTrainer())
    )
    assert [model.train_accuracy for model in packed] == [model.train_accuracy for model in single]
    np.testing.assert_allclose(
        [model.history["train_loss"] for model in packed], [model.history["train_loss"] for model in single], rtol=1e-3
    )


@pytest.mark.parametrize("pack", [1, 3, 16])
def test_a_model_does_not_depend_on_its_pack_bit_for_bit(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, pack: int
) -> None:
    recipe = Recipe(epochs=3, batch_size=16, augment="crop")
    together = problem.train(recipe, range(8))
    monkeypatch.setattr(stacked, "_PACK", pack)
    for places in (range(8), range(3, 4), range(5, 8)):
        for place, model in zip(places, problem.train(recipe, places), strict=True):
            assert problem.same(model, together[place])
    assert not problem.same(together[0], together[1])


def test_models_that_take_different_numbers_of_steps(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem.keep[:4] = torch.arange(120) < torch.tensor([32, 33, 64, 2])[:, None]
    recipe = Recipe(epochs=2, batch_size=16)
    packed, single = (
        by(trainer, monkeypatch, lambda: problem.train(recipe, range(8)))
        for trainer in (StackedTrainer(), PlainTrainer())
    )
    assert furthest(packed, single) < 1e-5


def test_reports_every_epoch_of_every_model(problem: Problem) -> None:
    trained = problem.train(Recipe(epochs=3), range(5))
    expected = [(m, e, trained[m].history["train_loss"][e - 1]) for m in range(5) for e in range(1, 4)]
    assert sorted(problem.epochs) == expected


def test_divergence_names_the_model(problem: Problem) -> None:
    with pytest.raises(DivergenceError, match=r"model \d \(seed 10\d\) diverged"):
        problem.train(Recipe(learning_rate=1e30), range(3))


def test_the_global_generator_is_left_as_it_was(problem: Problem) -> None:
    before = torch.get_rng_state()
    problem.train(Recipe(epochs=1, augment="flip"), range(2))
    assert torch.equal(torch.get_rng_state(), before)


class _Other(MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


DECLINED = {
    "another network": (Recipe(epochs=1), {"name": "cnn", "channels": 2, "hidden": 4}),
    "dropout": (Recipe(epochs=1), {"dropout": 0.1}),
    "another activation": (Recipe(epochs=1), {"activation": "gelu"}),
    "many weights": (Recipe(epochs=1), {"hidden": (2000,)}),
    "adam": (Recipe(epochs=1, optimizer="adam"), {}),
    "nesterov": (Recipe(epochs=1, nesterov=True), {}),
    "clipping": (Recipe(epochs=1, clip_norm=1.0), {}),
    "stopping": (Recipe(epochs=1, stop_at_train_accuracy=0.5), {}),
}


@pytest.mark.parametrize(("recipe", "options"), DECLINED.values(), ids=DECLINED)
def test_declines_what_it_does_not_do(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, options: dict
) -> None:
    build = problem.builder(**({"name": "mlp"} | options))
    with pytest.raises(AssertionError, match="the plain trainer takes everything"):
        by(StackedTrainer(), monkeypatch, lambda: problem.train(recipe, range(2), build))


def test_declines_frozen_weights_and_reparametrised_layers(problem: Problem) -> None:
    def frozen(seed: int) -> torch.nn.Module:
        model = problem.build(seed)
        next(model.parameters()).requires_grad_(False)
        return model

    def normed(seed: int) -> torch.nn.Module:
        model = problem.build(seed)
        torch.nn.utils.parametrizations.weight_norm(model.get_submodule("layers.1"))
        return model

    trained = problem.train(Recipe(epochs=1), build=frozen)[0]
    assert torch.equal(trained.state["layers.1.weight"], problem.build(100).state_dict()["layers.1.weight"])
    assert "layers.1.parametrizations.weight.original0" in problem.train(Recipe(epochs=1), build=normed)[0].state


def test_declines_a_subclass_which_may_compute_something_else(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="takes everything"):
        by(
            StackedTrainer(),
            monkeypatch,
            lambda: problem.train(Recipe(epochs=1), build=lambda seed: _Other((2, 8, 8), 3)),
        )
