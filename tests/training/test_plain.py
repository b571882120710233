"""One model at a time: against gradient descent written out, and decided by nothing but seed and records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fastmem.data.transforms import normalise
from fastmem.errors import InputError
from fastmem.training import DivergenceError, Recipe, train
from fastmem.training.evaluate import evaluate
from fastmem.training.job import stream_seed
from fastmem.training.plain import PlainTrainer

if TYPE_CHECKING:
    from tests.training.conftest import Problem


@pytest.fixture(autouse=True)
def plain_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_TRAINERS", (PlainTrainer(),))


def descend(problem: Problem, place: int, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Softmax regression by SGD with momentum in numpy and float64; the order of records is the only thing borrowed."""
    model = problem.build(place + 100, hidden=())
    weight, bias = (parameter.detach().double().numpy() for parameter in model.parameters())
    x = normalise(problem.data.x, *problem.data.channel_stats()).double().flatten(1).numpy()
    y = problem.data.y.numpy()
    records = np.flatnonzero(problem.keep[place])
    generator = torch.Generator().manual_seed(stream_seed(place + 100, "order"))
    speeds = [np.zeros_like(weight), np.zeros_like(bias)]
    batches = math.ceil(len(records) / recipe.batch_size)
    total, step, history = recipe.epochs * batches, 0, []
    for _ in range(recipe.epochs):
        order = records[torch.randperm(len(records), generator=generator).numpy()]
        mean = 0.0
        for batch in np.array_split(order, batches):
            logits = x[batch] @ weight.T + bias
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            smoothing = recipe.label_smoothing
            target = np.eye(3)[y[batch]] * (1 - smoothing) + smoothing / 3
            mean -= (target * np.log(p)).sum() / len(records)
            slope = (p - target) / len(batch)
            gradients = [
                slope.T @ x[batch] + recipe.weight_decay * weight,
                slope.sum(axis=0) + recipe.weight_decay * bias,
            ]
            rate = recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * step / total))
            for i, parameter in enumerate((weight, bias)):
                speeds[i] = recipe.momentum * speeds[i] + gradients[i]
                parameter -= rate * speeds[i]
            step += 1
        history.append(mean)
    return weight, bias, history


RECIPES = {
    "plain": Recipe(epochs=3, batch_size=20),
    "smoothed, decayed": Recipe(epochs=3, batch_size=20, label_smoothing=0.2, weight_decay=0.01, momentum=0.5),
    "one batch": Recipe(epochs=3, batch_size=500, momentum=0.0),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_is_gradient_descent_as_written_out(problem: Problem, recipe: Recipe) -> None:
    # numpy.array_split gives the longer batches first; sizes agree where they are all equal.
    problem.keep[2] = False
    problem.keep[2, 5:65] = True
    weight, bias, history = descend(problem, 2, recipe)
    model = problem.train(recipe, range(2, 3), problem.builder("mlp", hidden=()))[0]
    np.testing.assert_allclose(model.state["layers.1.weight"], weight, atol=2e-6)
    np.testing.assert_allclose(model.state["layers.1.bias"], bias, atol=2e-6)
    np.testing.assert_allclose(model.history["train_loss"], history, rtol=1e-5, atol=1e-7)


def test_the_comparison_above_notices_another_momentum(problem: Problem) -> None:
    problem.keep[2] = False
    problem.keep[2, 5:65] = True
    weight, _, _ = descend(problem, 2, Recipe(epochs=3, batch_size=20, momentum=0.89))
    model = problem.train(RECIPES["plain"], range(2, 3), problem.builder("mlp", hidden=()))[0]
    assert np.abs(model.state["layers.1.weight"].numpy() - weight).max() > 1e-4


CASES = {
    "mlp with dropout": ("mlp", {"dropout": 0.3}, Recipe(epochs=2, batch_size=16)),
    "cnn, augmented": ("cnn", {"channels": 4, "hidden": 8}, Recipe(epochs=2, batch_size=16, augment="flip+crop")),
    "wide resnet": ("wrn28-2", {"depth": 10, "widen": 1, "dropout": 0.1}, Recipe(epochs=2, batch_size=16)),
    "adam, clipped": ("mlp", {}, Recipe(epochs=2, optimizer="adam", clip_norm=0.5)),
    "adamw": ("mlp", {}, Recipe(epochs=2, optimizer="adamw", weight_decay=0.1)),
}


@pytest.mark.parametrize(("name", "options", "recipe"), CASES.values(), ids=CASES)
def test_models_together_are_the_models_alone_bit_for_bit(
    problem: Problem, name: str, options: dict, recipe: Recipe
) -> None:
    build = problem.builder(name, **options)
    together = problem.train(recipe, range(3), build)
    for place in (2, 0):
        torch.manual_seed(place)  # whatever the global generator holds
        alone = problem.train(recipe, range(place, place + 1), build)[0]
        assert problem.same(alone, together[place])
    assert not problem.same(together[0], together[1])


def test_the_global_generator_is_left_as_it_was(problem: Problem) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    problem.train(Recipe(epochs=1, augment="flip"), build=problem.builder("mlp", dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_build_that_draws_from_the_global_generator_is_seeded_too(problem: Problem) -> None:
    def build(seed: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 3))

    first, second = problem.train(Recipe(epochs=1), range(2), build)
    torch.manual_seed(9)
    again = problem.train(Recipe(epochs=1), range(1), build)[0]
    assert problem.same(first, again)
    assert not problem.same(first, second)


def test_learns_the_problem_and_reports_what_it_did(problem: Problem) -> None:
    trained = problem.train(Recipe(epochs=8), range(2))
    assert problem.epochs == [(m, e, trained[m].history["train_loss"][e - 1]) for m in range(2) for e in range(1, 9)]
    for place, result in enumerate(trained):
        assert result.history["train_loss"][-1] < result.history["train_loss"][0]
        assert (result.epochs_run, result.best_epoch) == (8, 8)
        model = problem.build(0)
        model.load_state_dict(result.state)
        x = normalise(problem.data.x[problem.keep[place]], *problem.data.channel_stats())
        right = model(x).argmax(dim=1) == problem.data.y[problem.keep[place]]
        assert result.train_accuracy == pytest.approx(float(right.float().mean()))


def test_a_remainder_of_one_record_does_not_stop_batch_normalisation(problem: Problem) -> None:
    problem.keep[0] = torch.arange(120) < 33  # 16 + 16 + 1 with fixed batches
    build = problem.builder("wrn28-2", depth=10, widen=1)
    state = problem.train(Recipe(epochs=1, batch_size=16), build=build)[0].state
    assert all(value.isfinite().all() for value in state.values())
    assert int(state["norm.num_batches_tracked"]) == 3


def test_batches_of_one_are_refused_where_they_cannot_work(problem: Problem) -> None:
    with pytest.raises(InputError, match="batch_size: 1 leaves a batch of 1 record, on which batch normalisation"):
        problem.train(Recipe(epochs=1, batch_size=1), build=problem.builder("wrn28-2", depth=10, widen=1))
    problem.train(Recipe(epochs=1, batch_size=1))


def test_divergence_names_the_model_and_the_remedy(problem: Problem) -> None:
    with pytest.raises(
        DivergenceError,
        match=r"model 0 \(seed 101\) diverged: its mean loss in epoch \d+ is (nan|inf); lower learning_rate",
    ):
        problem.train(Recipe(learning_rate=1e30), range(1, 3))


def test_stops_at_the_first_epoch_with_the_accuracy_asked_for(problem: Problem) -> None:
    slow = Recipe(epochs=40, learning_rate=2e-3, momentum=0.0, stop_at_train_accuracy=0.8, schedule="constant")
    stopped = problem.train(slow)[0]
    assert 1 < stopped.epochs_run < 40
    assert stopped.train_accuracy >= 0.8
    earlier = Recipe(epochs=stopped.epochs_run - 1, learning_rate=2e-3, momentum=0.0, schedule="constant")
    assert problem.train(earlier)[0].train_accuracy < 0.8


def test_patience_returns_to_the_best_weights(problem: Problem) -> None:
    # Held-out labels are random: the loss on them falls at first, if at all, and then only rises.
    x = problem.data.x[::2]
    y = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(1))
    recipe = Recipe(epochs=60, learning_rate=0.01, schedule="constant", patience=4)
    result = problem.train(recipe, validation=(x, y))[0]
    losses = result.history["validation_loss"]
    best = int(np.argmin(losses)) + 1
    assert (result.best_epoch, result.epochs_run) == (best, best + 4)
    assert result.epochs_run < 60
    model = problem.build(0)
    model.load_state_dict(result.state)
    assert evaluate(model, x, y, problem.data.channel_stats())[0] == pytest.approx(min(losses), rel=1e-12)
    assert min(losses) < losses[-1]


def test_evaluation_is_the_mean_over_all_rows_and_leaves_the_mode(problem: Problem) -> None:
    model = problem.build(1, dropout=0.5)
    rows = torch.arange(0, 120, 7)
    loss, accuracy = evaluate(model, problem.data.x, problem.data.y, problem.data.channel_stats(), rows)
    assert model.training
    model.eval()
    logits = model(normalise(problem.data.x[rows], *problem.data.channel_stats())).double()
    p = logits.softmax(dim=1)[torch.arange(len(rows)), problem.data.y[rows]]
    assert loss == pytest.approx(float(-p.log().mean().detach()), rel=1e-9)
    assert accuracy == pytest.approx(float((logits.argmax(dim=1) == problem.data.y[rows]).double().mean()))


def test_states_are_plain_tensors_of_their_own(problem: Problem) -> None:
    first = problem.train(Recipe(epochs=1), build=problem.builder("cnn", channels=4, hidden=8))[0]
    assert all(value.is_contiguous() and not value.requires_grad for value in first.state.values())
    assert all(value.device.type == "cpu" for value in first.state.values())
