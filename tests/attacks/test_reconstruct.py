"""The attack on networks small enough to solve, its settings, its state, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastmem.attacks.reconstruct import (
    PUBLISHED,
    ReconstructSettings,
    State,
    balanced_labels,
    random_settings,
    reconstruct,
)
from fastmem.attacks.reconstruct_victim import MarginTraining, homogeneous_mlp, sample_margins, train_to_margin
from fastmem.errors import InputError, UnknownNameError
from fastmem.metrics.reconstruction import correlations, greedy_matching, membership_permutation
from fastmem.ops.kkt_residual import KktNetwork

D = 24
FAST = ReconstructSettings(iterations=600, optimizer="adam", lr_x=0.05, lr_lambda=0.05, step="cosine", alpha=20.0)


def samples(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    x = torch.randn(n, D) * 0.4
    return x - x.mean(0), torch.tensor([-1.0] * (n // 2) + [1.0] * (n - n // 2))


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Sequential, torch.Tensor]:
    x, y = samples()
    model = homogeneous_mlp(D, hidden=(150, 150), seed=2)
    report = train_to_margin(model, x, y, MarginTraining(stop_loss=1e-9))
    assert report.fitted == 1
    return model.eval(), x


def test_training_reaches_a_margin_that_all_samples_share() -> None:
    x, y = samples()
    model = homogeneous_mlp(D, hidden=(150, 150), seed=2)
    report = train_to_margin(model, x, y, MarginTraining(stop_loss=1e-9))
    margins = sample_margins(model, x, y, "binary")
    assert report.loss < 1e-9
    assert report.smallest_margin == pytest.approx(float(margins.min()))
    # All of so few samples are support vectors: the direction of a KKT point, not just a small loss.
    assert report.largest_over_smallest < 1.3
    assert report.epochs < 2000


def test_the_published_schedule_is_plain_descent() -> None:
    x, y = samples()
    model = homogeneous_mlp(D, hidden=(20,), seed=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = torch.nn.functional.softplus(-y * model(x).squeeze(1)).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    train_to_margin(model, x, y, MarginTraining(schedule="published", rate=0.01, max_epochs=1))
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.01 * gradient)


def test_weight_decay_regression_and_classes_are_trained() -> None:
    x, y = samples()
    decayed = homogeneous_mlp(D, hidden=(50,), seed=2)
    recipe = MarginTraining(weight_decay=1e-2, rate=0.1, max_epochs=1500)
    assert not recipe.reaches_margin
    report = train_to_margin(decayed, x, y, recipe)
    assert report.fitted == 1
    assert report.loss > 1e-6  # the decay holds it where weights and gradients balance
    values = homogeneous_mlp(D, hidden=(50,), seed=2)
    report = train_to_margin(
        values, x, y, MarginTraining(task="regression", rate=0.05, stop_loss=1e-4, max_epochs=4000)
    )
    assert report.loss < 1e-4
    torch.testing.assert_close(values(x).squeeze(1), y, atol=0.1, rtol=0)
    classes = homogeneous_mlp(D, outputs=3, hidden=(50,), seed=2)
    report = train_to_margin(classes, x, torch.tensor([0, 1, 2, 1]), MarginTraining(task="multiclass", stop_loss=1e-6))
    assert report.fitted == 1
    assert report.smallest_margin > 5


def test_a_training_set_is_found_and_a_stranger_s_is_not(victim: tuple[nn.Sequential, torch.Tensor]) -> None:
    model, x = victim
    run = reconstruct(model, 8, FAST, sample_shape=(D,)).runs[0]
    strangers = torch.randn(36, D, generator=torch.Generator().manual_seed(9))
    found, null = (correlations(images, run.x).max(1) for images in (x, strangers))
    assert found.mean() > 0.6 > null.mean() + 0.1
    assert membership_permutation(found, null, 9999, 0) < 0.005
    assert run.residuals[-1].sum() < run.residuals[0].sum()
    assert run.steps[0] == 0


def test_what_the_attack_finds_depends_on_the_weights(victim: tuple[nn.Sequential, torch.Tensor]) -> None:
    _, x = victim
    untrained = homogeneous_mlp(D, hidden=(150, 150), seed=2).eval()
    run = reconstruct(untrained, 8, replace(FAST, iterations=200), sample_shape=(D,)).runs[0]
    assert greedy_matching(correlations(x, run.x)).count(0.8) == 0


def test_settings_that_advance_together_end_as_alone(victim: tuple[nn.Sequential, torch.Tensor]) -> None:
    model, _ = victim
    model = nn.Sequential(*list(model))
    network = KktNetwork.of(model.double().eval())
    settings = [replace(one, iterations=40) for one in random_settings(3, FAST, seed=1)]
    together = reconstruct(network, 6, settings, sample_shape=(D,)).runs
    for one, run in zip(settings, together, strict=True):
        alone = reconstruct(network, 6, one, sample_shape=(D,)).runs[0]
        torch.testing.assert_close(run.x, alone.x, rtol=1e-7, atol=1e-9)
    model.float()


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "step": "adaptive", "lr_x": 0.03, "lr_lambda": 1e-3}])
def test_an_attack_goes_on_where_it_stood(
    victim: tuple[nn.Sequential, torch.Tensor], changes: dict[str, object]
) -> None:
    model, _ = victim
    settings = replace(FAST, iterations=60, **changes)
    whole = reconstruct(model, 6, settings, sample_shape=(D,), log_every=10).runs[0]
    kept: dict[str, torch.Tensor] = {}

    class KilledError(Exception):
        pass

    def stop(state: State) -> None:
        if state.iteration == 30:
            kept.update({name: value.clone() for name, value in state.tensors().items()})
            raise KilledError

    with pytest.raises(KilledError):
        reconstruct(model, 6, settings, sample_shape=(D,), log_every=10, on_log=stop)
    resumed = reconstruct(model, 6, settings, sample_shape=(D,), log_every=10, state=State.of_tensors(kept)).runs[0]
    assert torch.equal(resumed.x, whole.x)
    assert np.array_equal(resumed.residuals, whole.residuals)
    assert np.array_equal(resumed.steps, whole.steps)


def test_a_run_that_diverges_is_frozen_and_others_go_on(victim: tuple[nn.Sequential, torch.Tensor]) -> None:
    model, _ = victim
    wild = replace(FAST, optimizer="sgd", step="constant", iterations=60, lr_x=1e6, lr_lambda=1e6)
    tame = replace(wild, lr_x=0.01, lr_lambda=1e-4)
    runs = reconstruct(model, 6, [wild, tame], sample_shape=(D,), log_every=5).runs
    assert runs[0].diverged is not None
    assert bool(runs[0].x.isfinite().all())
    assert runs[1].diverged is None
    alone = reconstruct(model, 6, tame, sample_shape=(D,), log_every=5).runs[0]
    torch.testing.assert_close(runs[1].x, alone.x, rtol=1e-4, atol=1e-5)


def test_multipliers_and_pixels_are_held_in_their_ranges(victim: tuple[nn.Sequential, torch.Tensor]) -> None:
    model, _ = victim
    run = reconstruct(model, 6, replace(FAST, low=-0.2, high=0.2), sample_shape=(D,)).runs[0]
    free = reconstruct(model, 6, replace(FAST, low=-5.0, high=5.0), sample_shape=(D,)).runs[0]
    assert float(run.x.abs().max()) < float(free.x.abs().max())
    assert float(run.multipliers.min()) > 0.2  # starts at U(0, 1), is pushed up to 0.447


def test_classes_go_by_the_margin() -> None:
    x, _ = samples()
    y = torch.tensor([0, 1, 2, 1])
    model = homogeneous_mlp(D, outputs=3, hidden=(150,), seed=2)
    train_to_margin(model, x, y, MarginTraining(task="multiclass", stop_loss=1e-9))
    run = reconstruct(model.eval(), None, FAST, sample_shape=(D,), labels=torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])).runs[
        0
    ]
    assert greedy_matching(correlations(x, run.x)).mean > 0.6


def test_a_convolutional_network_is_attacked_by_double_backward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).eval()
    run = reconstruct(model, 2, replace(FAST, iterations=30), sample_shape=(1, 4, 4), log_every=10).runs[0]
    assert run.residuals[-1].sum() < run.residuals[0].sum()
    assert run.x.shape == (2, 1, 4, 4)


def test_labels_of_unknown_balance() -> None:
    assert balanced_labels(4).tolist() == [-1, -1, 1, 1]
    assert balanced_labels(10, positive=0.3).tolist().count(1) == 3
    assert balanced_labels(6, outputs=3).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="at least 1"):
        balanced_labels(0)


def test_the_published_settings_are_the_published_ones() -> None:
    one = PUBLISHED["mnist-rbijxft7"]
    assert (one.lr_x, one.lambda_min, one.alpha) == (0.2821179669627431, 0.4152673302812194, 19.21458586003623)
    assert (one.init_scale, one.lr_lambda, one.momentum) == (0.0017419854462879885, 1e-4, 0.9)
    assert {each.optimizer for each in PUBLISHED.values()} == {"sgd", "adam"}
    drawn = random_settings(50, FAST, seed=0)
    assert min(each.alpha for each in drawn) >= 10
    assert max(each.lr_x for each in drawn) <= 1
    assert drawn == random_settings(50, FAST, seed=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"m": 0}, "at least 1"),
        ({"m": None}, "neither m nor labels"),
        ({"labels": torch.tensor([0, 1])}, "-1 or 1"),
        ({"sample_shape": (D + 1,)}, "does not read it"),
        ({"settings": []}, "empty"),
        ({"settings": [FAST, replace(FAST, iterations=7)]}, "differ in iterations"),
        ({"settings": [FAST, replace(FAST, lambda_min=None)]}, "lambda_min"),
    ],
)
def test_bad_input(victim: tuple[nn.Sequential, torch.Tensor], arguments: dict[str, object], words: str) -> None:
    defaults: dict[str, object] = {"m": 4, "settings": FAST, "sample_shape": (D,)}
    given = defaults | arguments
    if "labels" in given:
        given["m"] = None
    with pytest.raises(InputError, match=words):
        reconstruct(victim[0], **given)


def test_settings_out_of_range() -> None:
    for changes in ({"lr_x": 0.0}, {"alpha": -1.0}, {"momentum": 1.0}, {"low": 1.0}, {"lambda_min": -0.1}):
        with pytest.raises(InputError):
            replace(FAST, **changes)
    with pytest.raises(UnknownNameError):
        replace(FAST, optimizer="lbfgs")
    with pytest.raises(InputError, match="-1 and 1"):
        train_to_margin(homogeneous_mlp(D, hidden=(4,)), samples()[0], torch.tensor([0.0, 1, 2, 3]))
