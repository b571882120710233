"""A recipe refuses nonsense where it is written down, and its learning rates are those of its schedule."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from jsonargparse import ArgumentParser

from fastmem.errors import InputError, UnknownNameError
from fastmem.training import Recipe


def test_constant() -> None:
    assert Recipe(schedule="constant", epochs=2, learning_rate=0.3).rates(3) == [0.3] * 6


def test_cosine_starts_at_the_peak_and_ends_near_zero() -> None:
    rates = Recipe(schedule="cosine", epochs=2, learning_rate=0.4).rates(2)
    assert rates == pytest.approx([0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))])


def test_step_lowers_at_milestones() -> None:
    recipe = Recipe(schedule="step", milestones=(1, 3), step_factor=0.5, epochs=4, learning_rate=0.8)
    assert recipe.rates(2) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2])


def test_warm_up_rises_to_the_peak() -> None:
    rates = Recipe(schedule="constant", epochs=3, learning_rate=0.6, warmup_epochs=1.5).rates(2)
    assert rates == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.6, 0.6])
    cosine = Recipe(schedule="cosine", epochs=3, learning_rate=0.6, warmup_epochs=1).rates(2)
    assert cosine[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert cosine == sorted(cosine[:2]) + sorted(cosine[2:], reverse=True)


def test_the_default_rate_depends_on_the_optimizer() -> None:
    assert Recipe().peak_rate == 0.05
    assert Recipe(optimizer="adam").peak_rate == 0.001
    assert Recipe(optimizer="adam", learning_rate=0.01).peak_rate == 0.01
    assert Recipe(learning_rate=0.0).peak_rate == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"augment": "crops"}, "did you mean 'crop'"),
        ({"mixed_precision": "fp8"}, "did you mean 'fp16'"),
        ({"learning_rate": -0.1}, "learning_rate: -0.1; give a number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate: nan; give a finite number"),
        ({"momentum": 1.0}, "momentum: 1.0; give a number from 0 to below 1"),
        ({"weight_decay": math.inf}, "weight_decay: inf"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"warmup_epochs": -1.0}, "warmup_epochs"),
        ({"warmup_epochs": 51.0}, "warmup_epochs: 51.0; there are 50 epochs"),
        ({"epochs": 0}, "epochs: 0; give at least 1"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"patience": 0}, "patience: 0"),
        ({"stop_at_train_accuracy": 60.0}, "stop_at_train_accuracy: 60.0"),
        ({"stop_at_train_accuracy": 0.0}, "stop_at_train_accuracy"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov"),
        ({"schedule": "step"}, "milestones: \\[\\] with schedule 'step'"),
        ({"milestones": (3,)}, "milestones: \\[3\\] with schedule 'cosine'"),
        ({"schedule": "step", "milestones": (50,)}, "give epochs from 1 to 49"),
    ],
)
def test_refuses(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**values)


def test_an_unknown_name_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        Recipe(optimizer="rmsprop")  # type: ignore[arg-type]


def test_the_command_line_explains_and_reads_every_field() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    text = " ".join(parser.format_help().split())
    for field in fields(Recipe):
        assert f"--recipe.{field.name}" in text
    assert "Scale gradients down to this Euclidean norm" in text
    assert "Records a step, at most." in text
    given = parser.parse_args(
        ["--recipe.schedule=step", "--recipe.milestones=[2, 4]", "--recipe.learning_rate=0.1", "--recipe.epochs=6"]
    )
    assert Recipe(**vars(given.recipe)) == Recipe(schedule="step", milestones=(2, 4), learning_rate=0.1, epochs=6)
