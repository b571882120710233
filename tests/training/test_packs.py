"""Packs follow the memory of the device, and a pack that was too large starts again in halves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from fastmem.training import Recipe, packs, stacked, train
from fastmem.training.packs import bytes_of_training, train_in_packs
from fastmem.training.stacked import StackedTrainer

if TYPE_CHECKING:
    from fastmem.training.job import Job, TrainedModel
    from tests.training.conftest import Problem


@pytest.fixture
def job(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> Job:
    """What a trainer is handed."""
    jobs: list[Job] = []
    monkeypatch.setattr(train, "_choose", lambda job: jobs.append(job) or _Nothing())
    problem.train(Recipe(epochs=2, batch_size=100), range(8))
    return jobs[0]


class _Nothing:
    def train(self, job: Job) -> list[TrainedModel]:
        return []


class _Device:
    """Trains nothing; runs out of memory beyond ``room`` models."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[list[int]] = []

    def train(self, pack: list[int]) -> list:
        self.tried.append(pack)
        if len(pack) > self.room:
            raise torch.OutOfMemoryError("no memory")
        return [f"model {index}" for index in pack]


def test_a_pack_that_does_not_fit_starts_again_in_halves(job: Job) -> None:
    device = _Device(room=3)
    assert train_in_packs(job, 8, device.train) == [f"model {index}" for index in range(8)]
    assert [len(pack) for pack in device.tried] == [8, 4, 2, 2, 2, 2]


def test_one_model_that_does_not_fit_is_an_error(job: Job) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train_in_packs(job, 8, _Device(room=0).train)


def test_models_that_take_more_steps_are_in_other_packs(job: Job) -> None:
    job.records[3] = torch.arange(110)
    device = _Device(room=8)
    train_in_packs(job, 8, device.train)
    assert device.tried == [[0, 1, 2, 4, 5, 6, 7], [3]]


def test_what_ran_out_of_memory_ends_as_if_it_had_not(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_TRAINERS", (StackedTrainer(),))
    recipe = Recipe(epochs=2, batch_size=50, augment="crop")
    problem.keep[:] = torch.arange(120) < 60 + torch.arange(8)[:, None]
    expected = problem.train(recipe, range(8))
    step, calls = stacked._step, []

    def scarce(layers: list, x: torch.Tensor, *more: object) -> torch.Tensor:
        calls.append(len(x))
        if len(x) > 3 and len(calls) > 2:
            raise torch.OutOfMemoryError("no memory")
        return step(layers, x, *more)

    monkeypatch.setattr(stacked, "_step", scarce)
    found = problem.train(recipe, range(8))
    assert set(calls) == {8, 4, 2}
    assert all(problem.same(a, b) for a, b in zip(found, expected, strict=True))


def test_the_estimate_counts_weights_and_activations(problem: Problem, job: Job) -> None:
    model = problem.build(0, hidden=(50,))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    # Autograd keeps the inputs of both layers and the ReLU's result.
    least = 3 * weights + 2 * 4 * 100 * (128 + 50)
    assert least <= bytes_of_training(job, model) <= least + 2 * 4 * 100 * 100 + 2 * weights


def test_the_estimate_leaves_the_model_as_it_was(problem: Problem, job: Job) -> None:
    model = problem.build(0, "wrn28-2", depth=10, widen=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bytes_of_training(job, model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_gpu_takes_what_its_free_memory_holds(problem: Problem, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    model = problem.build(0)
    each = bytes_of_training(job, model)
    object.__setattr__(job, "device", torch.device("cuda"))
    for free, expected in ((11 * each, 7), (each // 2, 1), (10**6 * each, packs._LARGEST_PACK)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert packs.pack_size(job, model) == expected
