"""The one door: what it refuses, and which way of training it takes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fastmem.data import load_dataset, rank_design, split_records
from fastmem.errors import InputError
from fastmem.models import build_model
from fastmem.training import Recipe, train_models

if TYPE_CHECKING:
    from tests.training.conftest import Problem

X = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
KEEP = torch.ones(2, 6, dtype=torch.bool)
STATS = (torch.zeros(1), torch.ones(1))


def build(seed: int) -> torch.nn.Module:
    return build_model("mlp", (1, 8, 8), 3, seed, hidden=(4,))


def call(**changes) -> list:
    arguments = {"x": X, "y": Y, "keep": KEEP, "recipe": Recipe(epochs=1), "seeds": (1, 2), "normalisation": STATS}
    return train_models(build, **(arguments | changes))


BAD = {
    "keep of integers": ({"keep": KEEP.int()}, r"keep: int32 \[2, 6\] for 2 seeds and 6 samples; give bool \[2, 6\]"),
    "keep of another length": ({"keep": KEEP[:, :5]}, r"keep: bool \[2, 5\]"),
    "keep of other models": ({"seeds": (1, 2, 3)}, r"give bool \[3, 6\]"),
    "keep without models": ({"keep": KEEP[:0], "seeds": ()}, "seeds: none"),
    "a model without records": ({"keep": KEEP & torch.tensor([[True], [False]])}, "model 1 has 0 records"),
    "labels too few": ({"y": Y[:5]}, "6 samples, labels"),
    "labels of another kind": ({"y": Y.float()}, "float32"),
    "lists for other models": ({"keep": [np.arange(3)]}, "keep: 1 lists for 2 seeds"),
    "lists of other numbers": ({"keep": [np.arange(3), np.array([0, 6])]}, "records 0 to 6; give numbers below 6"),
    "lists of masks": ({"keep": [np.ones(6, dtype=bool)] * 2}, "give integers"),
    "a list of one record": ({"keep": [np.arange(3), np.array([5])]}, "model 1 has 1 records"),
    "negative seed": ({"seeds": (1, -2)}, "seeds: -2"),
    "augmented features": (
        {"x": torch.zeros(6, 3), "recipe": Recipe(augment="flip"), "normalisation": (torch.zeros(3), torch.ones(3))},
        r"augment: 'flip' for samples of shape \[3\]",
    ),
    "patience without held-out records": ({"recipe": Recipe(patience=2)}, r"patience: 2 .* give validation"),
    "held-out records without labels": (
        {"recipe": Recipe(patience=2), "validation": (X, Y[:2])},
        "validation: 6 samples",
    ),
    "half precision on the CPU": ({"recipe": Recipe(mixed_precision="bf16")}, "mixed_precision: bf16 on the CPU"),
    "no such device": ({"device": "gpu"}, "device: 'gpu'; give cpu, cuda or cuda:N"),
    "another device": ({"device": "meta"}, "device: 'meta'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_refuses(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(InputError, match=r"device: 'cuda:1', but torch .* finds 0 CUDA devices; give cpu"):
        call(device="cuda:1")


def test_numpy_masks_are_taken() -> None:
    assert len(call(keep=KEEP.numpy())) == 2


@pytest.mark.parametrize("trainer", ["stacked", "plain"])
def test_a_list_of_records_trains_as_its_mask(problem: Problem, trainer: str) -> None:
    recipe = Recipe(epochs=3, nesterov=trainer == "plain")
    masked = problem.train(recipe, range(2))
    data = problem.data
    listed = train_models(
        problem.build,
        data.x,
        data.y,
        [row.nonzero()[:, 0].numpy() for row in problem.keep[:2]],
        recipe,
        [100, 101],
        data.channel_stats(),
    )
    assert all(problem.same(*pair) for pair in zip(masked, listed, strict=True))


@pytest.mark.parametrize("trainer", ["stacked", "plain"])
def test_a_record_that_takes_anothers_place_changes_nothing_else(problem: Problem, trainer: str) -> None:
    """A seed-matched pair: with an equal copy in the original's place, the two models are the same, byte for byte."""
    data = problem.data
    x, y = torch.cat([data.x, data.x[7:8]]), torch.cat([data.y, data.y[7:8]])
    places = np.arange(len(data))
    replaced = np.where(places == 7, len(data), places)
    recipe = Recipe(epochs=3, nesterov=trainer == "plain")
    plain, copied = train_models(problem.build, x, y, [places, replaced], recipe, [5, 5], data.channel_stats())
    assert problem.same(plain, copied)
    x[-1] = 255 - x[-1]
    plain, marked = train_models(problem.build, x, y, [places, replaced], recipe, [5, 5], data.channel_stats())
    assert problem.same(plain, copied)
    assert not problem.same(plain, marked)


def test_inputs_are_left_as_they_were() -> None:
    before = [X.clone(), Y.clone(), KEEP.clone()]
    call()
    assert all(torch.equal(a, b) for a, b in zip(before, (X, Y, KEEP), strict=True))


@pytest.mark.parametrize(
    ("recipe", "trainer"),
    [
        (Recipe(epochs=1), "fused"),
        (Recipe(epochs=1, optimizer="adam"), "plain"),
        (Recipe(epochs=1, clip_norm=1), "plain"),
    ],
)
def test_says_which_way_it_takes_and_why(recipe: Recipe, trainer: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastmem.training"):
        call(recipe=recipe)
    assert f"training 2 models with the {trainer} trainer" in caplog.text
    assert ("not with the fused trainer: " in caplog.text) == (trainer == "plain")


def test_the_default_recipe_overfits_digits_so_that_membership_can_leak(problem: Problem) -> None:
    pool = split_records(load_dataset("digits")).pool
    keep = rank_design(4, len(pool), 0)
    trained = train_models(
        lambda seed: build_model("mlp", pool.input_shape, 10, seed, hidden=(128,)),
        pool.x,
        pool.y,
        keep,
        Recipe(),
        range(4),
        pool.channel_stats(),
    )
    assert all(model.train_accuracy == 1.0 for model in trained)
    model = build_model("mlp", pool.input_shape, 10, 0, hidden=(128,))
    gaps = []
    for row, result in zip(keep, trained, strict=True):
        model.load_state_dict(result.state)
        x = (pool.x / 255 - pool.channel_stats()[0]) / pool.channel_stats()[1]
        loss = torch.nn.functional.cross_entropy(model(x), pool.y, reduction="none")
        gaps.append(float((loss[~row].mean() - loss[row].mean()).detach()))
    assert min(gaps) > 0.1
