"""label_propagation: every implementation against the passes written out for one problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops.episodes import squared_distances
from fastmem.ops.label_propagation import label_propagation

from .implementations import taken, ways

WAYS = ways("label_propagation")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernel on each instruction set."""
    with taken(request.param):
        yield request.param


def problems(
    episodes: int = 3, count: int = 9, prototypes: int = 6, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    asked = torch.from_numpy(scale * rng.normal(size=(episodes, count, 4)))
    known = torch.from_numpy(scale * rng.normal(size=(episodes, prototypes, 4)))
    members = torch.from_numpy(
        rng.permuted(np.tile(np.arange(prototypes) < prototypes // 3 + 1, (episodes, 1)), axis=1)
    )
    lam = torch.tensor([0.0, 0.7, 2.9]).double().expand(episodes, -1)
    k = torch.tensor([1, 4, 50]).expand(episodes, -1)
    return squared_distances(asked, known), squared_distances(asked, asked), members, lam, k


def by_passes(distances: Tensor, apart: Tensor, members: Tensor, lam: Tensor, k: Tensor) -> np.ndarray:
    found = np.empty((*lam.shape, distances.shape[1]))
    for e, g in np.ndindex(*lam.shape):
        a, between, kinds = distances[e].numpy(), apart[e].numpy(), members[e].numpy()
        joined = np.zeros_like(between)
        for row in range(len(a)):
            others = [other for other in np.argsort(between[row], kind="stable") if other != row]
            joined[row, others[: int(k[e, g]) - 1]] = 1
        weight = float(lam[e, g])

        def log_softmax(z: np.ndarray) -> np.ndarray:
            top = z.max(axis=1, keepdims=True)
            return z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))

        log_y, old = log_softmax(-a), math.inf
        for number in range(1, 21):
            z = -a + weight * joined @ np.exp(log_y)
            log_y = log_softmax(z)
            y = np.exp(log_y)
            energy = (y * log_y).sum() + (a * y).sum() - weight * (y * (joined @ y)).sum()
            if number >= 3 and abs(energy - old) <= 1e-6 * abs(old):
                break
            old = energy
        found[e, g] = np.logaddexp.reduce(z[:, kinds], axis=1) - np.logaddexp.reduce(z[:, ~kinds], axis=1)
    return found


@pytest.mark.parametrize("prototypes", [2, 4, 12, 22])
@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_log_odds_are_their_definition(way: str, count: int, prototypes: int) -> None:
    given = problems(count=count, prototypes=prototypes)
    found = label_propagation(*given)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, by_passes(*given), rtol=1e-9, atol=1e-11)


def test_distances_far_beyond_what_exponentials_hold(way: str) -> None:
    """Shares round to 0 and 1 here, and the log-odds still order the records."""
    given = problems(scale=60.0)
    assert given[0].max() > 2000
    found = label_propagation(*given)
    assert found.isfinite().all()
    np.testing.assert_allclose(found, by_passes(*given), rtol=1e-9)


def test_parameters_and_episodes_do_not_touch_each_other(way: str) -> None:
    distances, apart, members, lam, k = problems(episodes=20)
    whole = label_propagation(distances, apart, members, lam, k)
    for episode in (0, 19):
        part = slice(episode, episode + 1)
        for g in range(3):
            alone = label_propagation(
                distances[part], apart[part], members[part], lam[part, g : g + 1], k[part, g : g + 1]
            )
            torch.testing.assert_close(alone[0, 0], whole[episode, g], rtol=1e-9, atol=1e-12)


def test_the_diagonal_is_not_read_and_strides_do_not_matter(way: str) -> None:
    distances, apart, members, lam, k = problems()
    whole = label_propagation(distances, apart, members, lam, k)
    marked = apart.clone()
    marked.diagonal(dim1=1, dim2=2).fill_(torch.nan if way != "reference" else -1.0)
    torch.testing.assert_close(label_propagation(distances, marked, members, lam, k), whole, rtol=0, atol=0)
    strided = label_propagation(distances.mT.contiguous().mT, apart, members, lam.contiguous(), k.contiguous())
    torch.testing.assert_close(strided, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 9), "distances: has shape"),
        (1, torch.zeros(3, 9, 8), "apart: has shape"),
        (2, torch.zeros(3, 6, dtype=torch.bool), "members: an episode has records of one kind only"),
        (3, torch.full((3, 3), -1.0), "lam, k: there is a lam below 0"),
        (4, torch.zeros(3, 3, dtype=torch.int64), "lam, k: there is a lam below 0 or a k below 1"),
        (4, torch.ones(3, 2, dtype=torch.int64), "k: has shape"),
        (4, torch.ones(3, 3), "k: got dtype float32"),
    ],
)
def test_bad_arguments_are_refused_by_name(place: int, value: Any, message: str) -> None:
    given = list(problems())
    given[place] = value
    with pytest.raises(InputError, match=message):
        label_propagation(*given)
