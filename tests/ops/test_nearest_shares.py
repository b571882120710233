"""nearest_shares: every implementation against loops over records and neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import explain
from fastmem.ops.nearest_shares import nearest_shares

from .implementations import taken, ways

WAYS = ways("nearest_shares")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the kernel on each instruction set."""
    with taken(request.param):
        yield request.param


def episodes(count: int = 3, known: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    records = torch.from_numpy(rng.normal(size=(40, width)))
    drawn = torch.from_numpy(np.stack([rng.permutation(40)[: known + 7] for _ in range(count)]))
    members = torch.from_numpy(rng.permuted(np.tile(np.arange(known) < (known + 1) // 2, (count, 1)), axis=1))
    return records, drawn[:, :known], members, drawn[:, known:]


def by_loops(records: Tensor, support: Tensor, members: Tensor, asked: Tensor, centre: Any, normalise: bool) -> Any:
    x = records.double().numpy()
    found = []
    for known, kinds, others in zip(support.numpy(), members.numpy(), asked.numpy(), strict=True):
        middle = x[known].mean(axis=0) if isinstance(centre, str) else np.zeros(x.shape[1])
        middle = centre.numpy() if isinstance(centre, Tensor) else middle

        def g(row: np.ndarray, middle: np.ndarray = middle) -> np.ndarray:
            return (row - middle) / max(np.linalg.norm(row - middle), 1e-6) if normalise else row

        gallery = [*x[known], x[known[~kinds]].mean(axis=0), x[known[kinds]].mean(axis=0)]
        labels = [*kinds, False, True]
        scores = []
        for record in others:
            distance = [float(((g(row) - g(x[record])) ** 2).sum()) for row in gallery]
            order = sorted(range(len(gallery)), key=lambda place: (distance[place], place))
            share = []
            for k in range(1, len(gallery) // 2 + 1, 2):
                weight = {place: 1 / max(distance[place], 1e-12) for place in order[:k]}
                share.append(sum(w for place, w in weight.items() if labels[place]) / sum(weight.values()))
            scores.append(share)
        found.append(scores)
    return np.array(found).transpose(2, 0, 1)


@pytest.mark.parametrize("known", [2, 5, 6, 20])
@pytest.mark.parametrize("width", [3, 7, 16])
def test_shares_are_their_definition(way: str, known: int, width: int) -> None:
    given = episodes(known=known, width=width)
    for centre, normalise in (
        ("support", True),
        (None, True),
        (torch.full((width,), 0.3).double(), True),
        (None, False),
    ):
        shares = nearest_shares(*given, centre=centre, normalise=normalise)
        assert shares.dtype == torch.float64
        np.testing.assert_allclose(shares, by_loops(*given, centre, normalise), rtol=1e-9, atol=1e-12)


def test_float32_strides_and_threads_change_nothing(way: str) -> None:
    records, support, members, asked = episodes(count=70, width=33)
    whole = nearest_shares(records, support, members, asked)
    strided = nearest_shares(records.T.contiguous().T, support.T.contiguous().T, members, asked.T.contiguous().T)
    torch.testing.assert_close(strided, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(nearest_shares(records.float(), support, members, asked), whole, rtol=1e-3, atol=1e-4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(nearest_shares(records, support, members, asked), whole, rtol=1e-12, atol=1e-14)
    finally:
        torch.set_num_threads(before)


def test_of_equally_near_rows_the_first_is_nearer_and_a_copy_is_no_division_by_zero(way: str) -> None:
    records = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0], [1, 0]]).double()
    support, asked = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4]])
    for first in (True, False):
        members = torch.tensor([[first, not first, True, False]])
        shares = nearest_shares(records, support, members, asked, centre=None, normalise=False)
        assert shares[0, 0, 0] == float(first)
        assert shares.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": torch.zeros(40)}, "records: has shape"),
        ({"records": torch.zeros(40, 5).half()}, "records: got dtype float16"),
        ({"support": torch.full((3, 6), 40)}, "support: names records 40 to 40 of 40"),
        ({"asked": torch.zeros(2, 7, dtype=torch.int64)}, "asked: 2 episodes beside 3"),
        ({"asked": torch.zeros(3, 7)}, "asked: got dtype float32"),
        ({"members": torch.ones(3, 6, dtype=torch.bool)}, "members: an episode has records of one kind only"),
        ({"members": torch.ones(3, 5, dtype=torch.bool)}, "members: has shape"),
        ({"centre": "mean"}, "centre: got 'mean'"),
        ({"centre": torch.zeros(4)}, "centre: has shape"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    records, support, members, asked = episodes()
    with pytest.raises(InputError, match=message):
        nearest_shares(**({"records": records, "support": support, "members": members, "asked": asked} | change))


def test_it_explains_itself() -> None:
    text = str(explain("nearest_shares", *episodes()))
    assert "reference" in text
    assert "float64 [40, 5] on cpu" in text
