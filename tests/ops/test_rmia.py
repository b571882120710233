"""rmia: every implementation against the comparison of every record with every population record."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import explain, use_backend
from fastmem.ops.rmia import rmia

from .implementations import Implementation, implementations

EXAMPLE = (torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))


@pytest.fixture(params=implementations("rmia", *EXAMPLE))
def run_on(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation in turn, forced."""
    with use_backend(request.param.backend):
        yield request.param


def by_definition(x: Tensor, z: Tensor, log_gamma: float) -> Tensor:
    """The N x Z comparison of every target."""
    wins = (x - log_gamma).unsqueeze(2) > z.unsqueeze(1)
    return wins.sum(2).double() / z.shape[1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("log_gamma", [0.0, math.log(2.0), -0.3])
@pytest.mark.parametrize(("targets", "records", "population"), [(1, 1, 1), (3, 50, 7), (2, 1000, 999), (1, 4, 4096)])
def test_bit_equal_to_the_definition(
    run_on: Implementation, targets: int, records: int, population: int, log_gamma: float
) -> None:
    x, z = normal(targets, records).to(run_on.device), normal(targets, population, seed=1).to(run_on.device)
    scores = rmia(x, z, log_gamma)
    assert scores.dtype == torch.float64
    assert torch.equal(scores, by_definition(x, z, log_gamma))


# Few distinct values, infinities and both zeros: ties everywhere.
VALUES = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.5, 1.0, math.inf, math.log(2.0)])


@settings(max_examples=200)
@given(
    x=st.lists(VALUES, max_size=8),
    z=st.lists(VALUES, min_size=1, max_size=9),
    log_gamma=st.sampled_from([0.0, math.log(2.0), 1.0, -0.5]),
)
def test_ties_are_no_wins(x: list[float], z: list[float], log_gamma: float) -> None:
    records = torch.tensor([x, x[::-1]], dtype=torch.float64).reshape(2, -1)
    population = torch.tensor([z, z[::-1]], dtype=torch.float64)
    expected = [[sum(value - log_gamma > other for other in z) / len(z) for value in row] for row in (x, x[::-1])]
    for implementation in implementations("rmia", *EXAMPLE):
        with use_backend(implementation.values[0].backend):
            assert rmia(records, population, log_gamma).tolist() == expected


def test_counting_ties_as_wins_would_be_seen() -> None:
    x = z = torch.tensor([[0.0, 1.0, 1.0, 2.0]], dtype=torch.float64)
    assert rmia(x, z).tolist() == [[0.0, 0.25, 0.25, 0.75]]
    lenient = torch.searchsorted(z, x, side="right").double() / 4
    assert lenient.tolist() == [[0.25, 0.75, 0.75, 1.0]]


def test_any_strides(run_on: Implementation) -> None:
    x, z = normal(40, 6).T[::2], normal(14, 6, seed=1)[::2].T[::2]
    assert not x.is_contiguous()
    assert not z.is_contiguous()
    before = x.clone(), z.clone()
    assert torch.equal(rmia(x.to(run_on.device), z.to(run_on.device)).cpu(), by_definition(x, z, 0.0))
    assert torch.equal(x, before[0])
    assert torch.equal(z, before[1])


def test_no_records_no_targets(run_on: Implementation) -> None:
    assert rmia(normal(2, 0).to(run_on.device), normal(2, 3).to(run_on.device)).shape == (2, 0)
    assert rmia(normal(0, 5).to(run_on.device), normal(0, 3).to(run_on.device)).shape == (0, 5)


def test_the_number_of_threads_changes_nothing(run_on: Implementation) -> None:
    x, z = normal(3, 20_000).to(run_on.device), normal(3, 30_000, seed=1).to(run_on.device)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(rmia(x, z, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_refusals() -> None:
    x, z = normal(2, 3), normal(2, 4)
    with pytest.raises(InputError, match=r"log_ratio_x: got dtype float32; accepted: float64"):
        rmia(x.float(), z)
    with pytest.raises(InputError, match=r"log_ratio_x: has shape \[3\]; give \[targets, records\]"):
        rmia(x[0], z)
    with pytest.raises(InputError, match=r"log_ratio_z: has shape \[1, 4\] beside log_ratio_x of \[2, 3\]"):
        rmia(x, z[:1])
    with pytest.raises(InputError, match="at least one population record"):
        rmia(x, z[:, :0])
    with pytest.raises(InputError, match="log_ratio_z: 2 of 8 values are NaN; leave those records out"):
        rmia(x, torch.where(z == z[:, :1], math.nan, z))
    with pytest.raises(InputError, match="log_gamma: got nan; give a finite number"):
        rmia(x, z, math.nan)


def test_explain_takes_a_public_call() -> None:
    assert "-> " in str(explain("rmia", *EXAMPLE, log_gamma=0.5))
