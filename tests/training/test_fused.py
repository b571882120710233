"""Perceptrons in native calls equal single ones by PyTorch, whatever is in flight beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fastmem.models.mlp import MLP
from fastmem.ops import explain, use_backend
from fastmem.training import DivergenceError, Recipe, fused, train
from fastmem.training.fused import FusedTrainer
from fastmem.training.plain import PlainTrainer
from tests.training.test_stacked import by, furthest

if TYPE_CHECKING:
    from tests.training.conftest import Problem

pytestmark = pytest.mark.skipif(
    explain("mlp_sgd").chosen != "cpu", reason=f"the kernel does not run: {explain('mlp_sgd').remarks['cpu']}"
)


@pytest.fixture(autouse=True)
def fused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_TRAINERS", (FusedTrainer(),))


RECIPES = {
    "default": Recipe(epochs=1, batch_size=16),
    "everything": Recipe(
        epochs=1,
        batch_size=16,
        learning_rate=0.1,
        momentum=0.7,
        nesterov=True,
        weight_decay=0.01,
        label_smoothing=0.1,
        augment="flip+crop",
        schedule="constant",
        warmup_epochs=0.5,
    ),
    "no momentum": Recipe(epochs=1, batch_size=50, momentum=0.0),
    "one batch": Recipe(epochs=1, batch_size=500),
    "one record a batch": Recipe(epochs=1, batch_size=1, learning_rate=0.01),
}
SHAPES = {"linear": (), "one layer": (12,), "three layers": (9, 33, 7)}


@pytest.mark.parametrize("hidden", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_equals_one_model_at_a_time(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, hidden: tuple[int, ...]
) -> None:
    def doubles(seed: int) -> nn.Module:
        return problem.build(seed, hidden=hidden).double()

    for build, epochs, tolerance in ((problem.builder("mlp", hidden=hidden), 1, 1e-5), (doubles, 3, 1e-10)):
        run = lambda build=build, epochs=epochs: problem.train(replace(recipe, epochs=epochs), range(8), build)  # noqa: E731
        together, single = (by(trainer, monkeypatch, run) for trainer in (FusedTrainer(), PlainTrainer()))
        assert furthest(together, single) < tolerance
        assert [model.epochs_run for model in together] == [model.epochs_run for model in single]


STOPPING = {
    "accuracy": {"stop_at_train_accuracy": 0.9},
    "patience": {"patience": 2, "learning_rate": 0.3},
}


@pytest.mark.parametrize("options", STOPPING.values(), ids=STOPPING)
@pytest.mark.parametrize("threads", [1, 3])
def test_models_stop_early_each_at_its_own_time(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, options: dict, threads: int
) -> None:
    recipe = Recipe(epochs=12, batch_size=16, **({"learning_rate": 0.01} | options))
    held_out = (problem.data.x[:40], problem.data.y[:40])

    def doubles(seed: int) -> nn.Module:
        return problem.build(seed).double()

    run = lambda: problem.train(recipe, range(8), doubles, validation=held_out)  # noqa: E731
    torch.set_num_threads(threads)
    together, single = (by(trainer, monkeypatch, run) for trainer in (FusedTrainer(), PlainTrainer()))
    assert len({model.epochs_run for model in single}) > 1
    assert [(m.epochs_run, m.best_epoch) for m in together] == [(m.epochs_run, m.best_epoch) for m in single]
    assert furthest(together, single) < 1e-10


def test_the_comparisons_above_notice_a_wrong_rate(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    right = by(PlainTrainer(), monkeypatch, lambda: problem.train(RECIPES["default"], range(2)))
    wrong_recipe = replace(RECIPES["default"], learning_rate=0.0505)
    wrong = by(FusedTrainer(), monkeypatch, lambda: problem.train(wrong_recipe, range(2)))
    assert furthest(right, wrong) > 1e-4


def test_ends_at_the_same_place_after_many_epochs(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(epochs=30, batch_size=16)
    together, single = (
        by(trainer, monkeypatch, lambda: problem.train(recipe, range(8)))
        for trainer in (FusedTrainer(), PlainTrainer())
    )
    assert [model.train_accuracy for model in together] == [model.train_accuracy for model in single]
    losses = torch.tensor([[m.history["train_loss"] for m in side] for side in (together, single)])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_a_model_does_not_depend_on_what_is_in_flight_bit_for_bit(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, augment: str
) -> None:
    recipe = Recipe(epochs=4, batch_size=16, augment=augment)
    together = problem.train(recipe, range(8))
    assert not problem.same(together[0], together[1])
    for threads, call in ((1, 1), (2, 1 << 40), (3, 200_000)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(fused, "_CALL", call)
        for places in (range(8), range(3, 4), range(5, 8)):
            for place, model in zip(places, problem.train(recipe, places), strict=True):
                assert problem.same(model, together[place])


def test_records_too_many_for_one_normalised_copy_are_gathered(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, batch_size=16)
    problem.keep[1] = torch.arange(120) < 50
    read_through_index = problem.train(recipe, range(3))
    monkeypatch.setattr(fused, "_POOL_BYTES", 0)
    monkeypatch.setattr("fastmem.training.batches.BLOCK_VALUES", 16 * 128 * 2)
    torch.set_num_threads(2)
    gathered = problem.train(recipe, range(3))
    assert all(problem.same(a, b) for a, b in zip(read_through_index, gathered, strict=True))


def test_models_that_take_different_numbers_of_steps(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem.keep[:4] = torch.arange(120) < torch.tensor([32, 33, 64, 2])[:, None]
    recipe = Recipe(epochs=2, batch_size=16)
    torch.set_num_threads(2)
    together, single = (
        by(trainer, monkeypatch, lambda: problem.train(recipe, range(8)))
        for trainer in (FusedTrainer(), PlainTrainer())
    )
    assert furthest(together, single) < 1e-5


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


def test_takes_a_users_sequential_of_the_same_layers(problem: Problem) -> None:
    own = problem.train(
        Recipe(epochs=1), build=lambda seed: nn.Sequential(*problem.build(seed).get_submodule("layers"))
    )
    ours = problem.train(Recipe(epochs=1))
    assert torch.equal(own[0].state["1.weight"], ours[0].state["layers.1.weight"])


class _Other(MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _hooked(seed: int) -> nn.Module:
    model = MLP((2, 8, 8), 3, (4,))
    model.layers.register_forward_hook(lambda module, given, result: 2 * result)
    return model


def _frozen(seed: int) -> nn.Module:
    model = MLP((2, 8, 8), 3, (4,))
    next(model.parameters()).requires_grad_(False)
    return model


def _tied(seed: int) -> nn.Module:
    square = nn.Linear(128, 128)
    return nn.Sequential(nn.Flatten(), square, nn.ReLU(), square, nn.ReLU(), nn.Linear(128, 3))


def _normed(seed: int) -> nn.Module:
    model = MLP((2, 8, 8), 3, (4,))
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule("layers.1"))
    return model


DECLINED = {
    "adam": (Recipe(epochs=1, optimizer="adam"), None),
    "clipping": (Recipe(epochs=1, clip_norm=1.0), None),
    "dropout": (Recipe(epochs=1), lambda seed: MLP((2, 8, 8), 3, (4,), dropout=0.1)),
    "another activation": (Recipe(epochs=1), lambda seed: MLP((2, 8, 8), 3, (4,), activation="gelu")),
    "a subclass": (Recipe(epochs=1), lambda seed: _Other((2, 8, 8), 3)),
    "a hook": (Recipe(epochs=1), _hooked),
    "frozen weights": (Recipe(epochs=1), _frozen),
    "shared weights": (Recipe(epochs=1), _tied),
    "weight norm": (Recipe(epochs=1), _normed),
    "no bias": (Recipe(epochs=1), lambda seed: nn.Sequential(nn.Flatten(), nn.Linear(128, 3, bias=False))),
    "half precision": (Recipe(epochs=1), lambda seed: MLP((2, 8, 8), 3, (4,)).bfloat16()),
}


@pytest.mark.parametrize(("recipe", "build"), DECLINED.values(), ids=DECLINED)
def test_declines_what_it_does_not_do(
    problem: Problem, recipe: Recipe, build: Callable[[int], nn.Module] | None
) -> None:
    with pytest.raises(AssertionError, match="the plain trainer takes everything"):
        problem.train(recipe, range(2), build)


def test_declines_where_its_kernel_does_not_run(problem: Problem) -> None:
    with use_backend("reference"), pytest.raises(AssertionError, match="takes everything"):
        problem.train(Recipe(epochs=1))
