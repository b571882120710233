"""lira_moments: every implementation against a loop over targets, records, queries and models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops import explain, use_backend
from fastmem.ops.leave_one_out import References, leave_one_out, reference_masks
from fastmem.ops.lira_moments import LiraMoments, lira_moments

from .implementations import Implementation, implementations, taken, ways

EXAMPLE = (torch.zeros(2, 1, 1), torch.zeros(2, 1, dtype=torch.bool))


@pytest.fixture(params=implementations("lira_moments", *EXAMPLE))
def run_on(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation in turn, forced."""
    with use_backend(request.param.backend):
        yield request.param


# --- data -------------------------------------------------------------------------------------------------------------


def masks(design: str, num_models: int, num_samples: int, seed: int) -> Tensor:
    uniform = torch.rand(num_models, num_samples, generator=torch.Generator().manual_seed(seed))
    if design == "exact half":
        return uniform.argsort(0) < num_models // 2
    if design == "paired":
        keep = uniform < 0.5
        keep[1::2] = ~keep[: num_models // 2 * 2 : 2]
        return keep
    if design == "coins":
        return uniform < 0.5
    if design == "few":
        return uniform.argsort(0) < min(2, num_models)
    assert design == "outside target"
    keep = torch.zeros_like(uniform, dtype=torch.bool)
    keep[-1] = uniform[-1] < 0.5
    return keep


DESIGNS = ("exact half", "paired", "coins", "few", "outside target")


def margins(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the oracle -------------------------------------------------------------------------------------------------------


def brute_force(phi: Tensor, keep: Tensor, plan: References, first_sample: int = 0) -> LiraMoments:
    """By exact rational arithmetic, one group at a time."""
    shape = (len(plan.targets), *phi.shape[1:])
    counts = [np.zeros(shape[:2], dtype=np.int32) for _ in range(2)]
    moments = [[np.full(shape, np.nan) for _ in range(3)] for _ in range(2)]
    for row, (target, partner, rule) in enumerate(zip(*(part.tolist() for part in plan), strict=True)):
        for side, group in enumerate(reference_masks(keep, target, partner, rule, first_sample)):
            for n in range(shape[1]):
                counts[side][row, n] = int(group[:, n].sum())
                for a in range(shape[2]):
                    values = phi[group[:, n], n, a].double().tolist()
                    for part, value in zip(moments[side], of_group(values), strict=True):
                        part[row, n, a] = value
    parts = [(counts[side], *moments[side]) for side in (0, 1)]
    return LiraMoments(*(torch.from_numpy(part) for side in parts for part in side))


def of_group(values: list[float]) -> tuple[float, float, float]:
    if not values:
        return math.nan, math.nan, math.nan
    return float(statistics.mean(values)), float(statistics.pvariance(values)), float(statistics.median(values))


def assert_same(found: LiraMoments, expected: LiraMoments, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    for name, got, want in zip(LiraMoments._fields, found, expected, strict=True):
        if got is None:
            assert name.startswith("median")
            continue
        assert got.shape == want.shape
        assert got.dtype == (torch.int32 if name.startswith("n_") else torch.float64)
        np.testing.assert_allclose(got.cpu().numpy(), want.numpy(), rtol, atol, equal_nan=True, err_msg=name)


# --- against the oracle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("num_models", [2, 4, 7, 16])
def test_every_design(run_on: Implementation, num_models: int, design: str, counts: str) -> None:
    phi = margins(num_models, 12, 2).to(run_on.device)
    keep = masks(design, num_models, 12, seed=num_models).to(run_on.device)
    plan = leave_one_out(keep, None, counts)
    found = lira_moments(phi, keep, plan, median=True, first_sample=5)
    assert_same(found, brute_force(phi.cpu(), keep.cpu(), References(*(p.cpu() for p in plan)), 5))


@settings(max_examples=60)
@given(
    num_models=st.integers(1, 9),
    num_samples=st.integers(0, 4),
    num_queries=st.integers(1, 3),
    design=st.sampled_from(DESIGNS),
    counts=st.sampled_from(("equal", "all")),
    targets=st.none() | st.lists(st.integers(0, 8), max_size=3, unique=True),
    digits=st.integers(0, 8),
    wide=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(
    num_models: int,
    num_samples: int,
    num_queries: int,
    design: str,
    counts: str,
    targets: list[int] | None,
    digits: int,
    wide: bool,
    seed: int,
) -> None:
    # Rounding to few digits makes ties, which a median by ranks must survive.
    phi = margins(num_models, num_samples, num_queries, seed=seed).round(decimals=digits)
    phi = phi if wide else phi.float()
    keep = masks(design, num_models, num_samples, seed)
    rows = None if targets is None else [target for target in targets if target < num_models]
    plan = leave_one_out(keep, rows, counts)
    expected = brute_force(phi, keep, plan)
    for implementation in implementations("lira_moments", *EXAMPLE):
        with use_backend(implementation.values[0].backend):
            assert_same(lira_moments(phi, keep, plan, median=True), expected)
            assert_same(lira_moments(phi, keep, plan), expected)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "negative offset"])
def test_any_strides(run_on: Implementation, layout: str) -> None:
    keep = masks("exact half", 8, 20, 0)
    if layout == "transposed":
        phi, keep = margins(2, 20, 8).permute(2, 1, 0), keep.T.contiguous().T
    elif layout == "strided":
        phi, wide = margins(16, 40, 4)[::2, ::2, ::2], torch.zeros(16, 40, dtype=torch.bool)
        wide[::2, ::2] = keep
        keep = wide[::2, ::2]
    elif layout == "expanded":
        phi = margins(8, 20, 1).expand(8, 20, 3)
    else:
        phi = margins(9, 21, 2)[1:, 1:]
    assert not phi.is_contiguous()
    found = lira_moments(phi.to(run_on.device), keep.to(run_on.device), median=True)
    assert_same(found, brute_force(phi, keep, leave_one_out(keep)))


def test_an_even_group_solved_by_hand(run_on: Implementation) -> None:
    phi = torch.tensor([9.0, 1.0, 4.0, 2.0, -1.0, 5.0], device=run_on.device)[:, None, None]
    keep = torch.tensor([True, True, True, True, False, False], device=run_on.device)[:, None]
    moments = lira_moments(phi, keep, leave_one_out(keep, [0, 5], "all"), median=True)
    assert moments.n_in.flatten().tolist() == [3, 4]
    assert moments.median_in is not None
    assert moments.median_in.flatten().tolist() == [2.0, 3.0]
    assert moments.mean_in.flatten().tolist() == pytest.approx([7 / 3, 4.0])
    assert moments.var_in.flatten().tolist() == pytest.approx([14 / 9, 9.5])
    assert moments.mean_out.flatten().tolist() == [2.0, -1.0]
    assert moments.var_out.flatten().tolist() == [9.0, 0.0]


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_variance_of_values_far_from_zero(run_on: Implementation, offset: float) -> None:
    phi, keep = margins(16, 30, 1) + offset, masks("exact half", 16, 30, 0)
    expected = brute_force(phi, keep, leave_one_out(keep))
    found = lira_moments(phi.to(run_on.device), keep.to(run_on.device))
    np.testing.assert_allclose(found.var_out.cpu(), expected.var_out, rtol=1e-13 + 1e-15 * abs(offset))
    if offset:
        naive = phi.square().mean(0) - phi.mean(0).square()
        assert (naive - phi.var(0, correction=0)).abs().max() > 1e-13 * abs(offset)  # what the tolerance excludes


@pytest.mark.parametrize("scale", [1e3, 1e8, 1e15])
def test_leaving_out_an_outlier_leaves_the_digits_of_the_rest(run_on: Implementation, scale: float) -> None:
    # One model of each group is far away: taken from the sums of all, the others' moments would keep few digits.
    phi, keep = margins(16, 20, 1).abs(), masks("exact half", 16, 20, 0)
    phi[0] = scale
    phi[1] = -scale
    found = lira_moments(phi.to(run_on.device), keep.to(run_on.device), median=True)
    expected = brute_force(phi, keep, leave_one_out(keep))
    assert_same(found, expected, rtol=1e-12, atol=1e-13)

    total = phi.sum(0)
    subtracted = (total - phi[0] - phi[1]) / 14
    if scale > 1e12:
        assert (subtracted - phi[2:].mean(0)).abs().max() > 1e-3


def test_means_of_probabilities_keep_their_relative_precision(run_on: Implementation) -> None:
    # RMIA divides by means of probabilities, which may all be tiny but for the model that is left out.
    phi = torch.full((6, 2, 1), 1e-14, dtype=torch.float64) * torch.arange(1, 7)[:, None, None]
    phi[0] = 1.0
    keep = torch.zeros(6, 2, dtype=torch.bool, device=run_on.device)
    mean = lira_moments(phi.to(run_on.device), keep).mean_out[0]
    np.testing.assert_allclose(mean.cpu(), 4e-14, rtol=1e-15)


@pytest.mark.parametrize("value", [0.1, 1.0 - 2**-53, -1e7 / 3])
def test_models_that_agree_have_no_spread(run_on: Implementation, value: float) -> None:
    phi = torch.full((32, 3, 2), value, dtype=torch.float64, device=run_on.device)
    keep = masks("exact half", 32, 3, 0).to(run_on.device)
    moments = lira_moments(phi, keep, median=True)
    assert moments.median_in is not None
    assert (moments.median_in == value).all()
    rounding = abs(value) * 2**-49  # of a plain sum of 16 values; far below any floor
    assert (moments.mean_in - value).abs().max() <= rounding
    assert moments.var_in.sqrt().max() <= rounding


def test_equal_sets_have_equal_means_to_the_last_bit(run_on: Implementation) -> None:
    # A record that only the target trained on, and one that none did, have the same OUT references in different ways:
    # the one by leaving out a member, the other by leaving out a model of the group.
    phi = margins(65, 200, 2).sigmoid().to(run_on.device)
    keep = torch.zeros(65, 200, dtype=torch.bool, device=run_on.device)
    keep[7, ::2] = True
    without = lira_moments(phi, torch.zeros_like(keep), leave_one_out(torch.zeros_like(keep), [7], "all"))
    found = lira_moments(phi, keep, leave_one_out(keep, [7], "all"))
    assert torch.equal(found.mean_out, without.mean_out)


# --- special values ---------------------------------------------------------------------------------------------------


def test_a_nan_stays_in_its_group(run_on: Implementation) -> None:
    phi = margins(8, 3, 1).to(run_on.device)
    keep = masks("exact half", 8, 3, 0).to(run_on.device)
    model = int(keep[:, 0].long().argmax())
    phi[model, 0, 0] = torch.nan
    plan = leave_one_out(keep, None, "all")
    moments = lira_moments(phi, keep, plan, median=True)
    clean = lira_moments(phi.nan_to_num(), keep, plan, median=True)
    for name in ("mean_in", "var_in", "median_in"):
        is_nan = getattr(moments, name).isnan()
        assert is_nan[:, 0].flatten().tolist() == [row != model for row in range(8)]
        assert not is_nan[:, 1:].any()
    for name in ("mean_out", "var_out", "median_out"):
        assert torch.equal(getattr(moments, name), getattr(clean, name))


def test_an_infinity_has_an_infinite_mean_and_no_variance(run_on: Implementation) -> None:
    phi = torch.tensor([1.0, 2.0, 3.0, torch.inf, 5.0], device=run_on.device)[:, None, None]
    keep = torch.ones(5, 1, dtype=torch.bool, device=run_on.device)
    moments = lira_moments(phi, keep, median=True)
    assert moments.mean_in.flatten().tolist() == [torch.inf, torch.inf, torch.inf, 2.75, torch.inf]
    assert moments.var_in.isnan().flatten().tolist() == [True, True, True, False, True]
    assert moments.median_in is not None
    assert moments.median_in.flatten().tolist() == [4.0, 4.0, 3.5, 2.5, 2.5]


def test_an_empty_group_has_no_moments(run_on: Implementation) -> None:
    keep = torch.tensor([[True], [False]], device=run_on.device)
    moments = lira_moments(
        torch.zeros(2, 1, 1, device=run_on.device), keep, leave_one_out(keep, [0], "all"), median=True
    )
    assert (moments.n_in.item(), moments.n_out.item()) == (0, 1)
    assert all(part.isnan().all() for part in moments[1:4] if part is not None)
    assert moments.var_out.item() == 0.0


# --- blocks, threads, doors -------------------------------------------------------------------------------------------


def test_blocks_of_records_give_the_same_bits(run_on: Implementation) -> None:
    phi, keep = margins(16, 100, 2).to(run_on.device), masks("exact half", 16, 100, 0).to(run_on.device)
    plan = leave_one_out(keep)
    whole = lira_moments(phi, keep, plan, median=True)
    for first in range(0, 100, 17):
        part = slice(first, first + 17)
        block = lira_moments(phi[:, part], keep[:, part], plan, median=True, first_sample=first)
        for one, all_records in zip(block, whole, strict=True):
            assert one is not None
            assert all_records is not None
            assert torch.equal(one, all_records[:, part])


@pytest.mark.parametrize("way", ways("lira_moments"))
@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("values", ["margins", "float32", "special", "agreeing", "outlier", "strided"])
def test_few_targets_get_the_bits_that_all_get(way: str, counts: str, values: str) -> None:
    phi, keep = margins(21, 130, 2), masks("coins", 21, 130, 3)
    keep[:, 7], keep[1:, 8] = False, True
    if values == "float32":
        phi = phi.float()
    elif values == "special":
        phi[3, ::5], phi[9, 1::5], phi[4, 2::5], phi[12, 3::5] = math.inf, -math.inf, math.nan, 1e300
    elif values == "agreeing":
        phi[:] = 0.1
    elif values == "outlier":
        phi[4, ::2], phi[17, ::3] = 1e12, -1e-12
    elif values == "strided":
        phi, keep = phi.permute(1, 2, 0).contiguous().permute(2, 0, 1), keep.T.contiguous().T
    targets = [4, 17, 0]
    with taken(way):
        whole = lira_moments(phi, keep, leave_one_out(keep, None, counts), first_sample=11)
        few = lira_moments(phi, keep, leave_one_out(keep, targets, counts), first_sample=11)
    for name, one, every in zip(LiraMoments._fields, few, whole, strict=True):
        if one is not None and every is not None:
            np.testing.assert_array_equal(one.numpy(), every[targets].numpy(), err_msg=name)


def test_the_number_of_threads_changes_nothing(run_on: Implementation) -> None:
    if run_on.backend == "reference":
        pytest.skip("its threads are torch's")
    phi, keep = margins(16, 3000, 2).to(run_on.device), masks("exact half", 16, 3000, 0).to(run_on.device)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(lira_moments(phi, keep, median=True))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(
            torch.equal(a, b) for a, b in zip(result, results[0], strict=True) if a is not None and b is not None
        )


def test_refusals() -> None:
    phi, keep = torch.zeros(4, 3, 1), torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"phi: has shape \[4, 3\] for keep \[4, 3\]; give \[M, N, A\]"):
        lira_moments(phi[..., 0], keep)
    with pytest.raises(InputError, match="phi: got dtype int64; accepted: float32, float64"):
        lira_moments(phi.long(), keep)
    with pytest.raises(InputError, match="keep: got dtype float32; accepted: bool"):
        lira_moments(phi, keep.float())
    with pytest.raises(InputError, match="references: do not fit the 3 models of keep"):
        lira_moments(phi[:3], keep[:3], leave_one_out(keep))


def test_explain_takes_a_public_call() -> None:
    text = str(explain("lira_moments", *EXAMPLE, median=True))
    assert "reference" in text
    assert "->" in text
