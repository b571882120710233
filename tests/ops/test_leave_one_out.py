"""leave_one_out: how many references each design leaves, that the number tells nothing, and who is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops.leave_one_out import (
    CUT_NOTHING,
    CUT_ONE,
    CUT_TO_SMALLER,
    leave_one_out,
    missing_out,
    reference_masks,
    reference_sizes,
)


def exact(num_models: int, num_samples: int, k: int, seed: int = 0) -> Tensor:
    """Every record in exactly k models."""
    return torch.rand(num_models, num_samples, generator=torch.Generator().manual_seed(seed)).argsort(0) < k


def coins(num_models: int, num_samples: int, rate: float, seed: int = 0) -> Tensor:
    return torch.rand(num_models, num_samples, generator=torch.Generator().manual_seed(seed)) < rate


def paired(num_models: int, num_samples: int, seed: int = 0) -> Tensor:
    keep = coins(num_models, num_samples, 0.5, seed)
    keep[1::2] = ~keep[::2]
    return keep


def sizes_by_membership(keep: Tensor) -> tuple[Tensor, Tensor]:
    """(n_in, n_out) of all targets, for pairs of target and record that are members and for those that are not."""
    sizes = torch.stack([torch.stack(pair, dim=1) for pair in reference_sizes(keep, leave_one_out(keep))])
    return sizes[keep], sizes[~keep]


@pytest.mark.parametrize(("num_models", "k"), [(2, 1), (4, 2), (8, 4), (9, 3), (16, 12), (33, 1)])
def test_equal_inclusion_leaves_the_same_for_members_and_others(num_models: int, k: int) -> None:
    for sizes in sizes_by_membership(exact(num_models, 600, k)):
        assert (sizes == torch.tensor([k - 1, num_models - k - 1])).all()


def test_all_counts_tell_membership() -> None:
    keep = exact(8, 60, 4)
    n_in, n_out = next(reference_sizes(keep, leave_one_out(keep, [0], "all")))
    assert (n_in == 4 - keep[0].long()).all()
    assert (n_out == 3 + keep[0].long()).all()


def test_a_complement_is_no_reference() -> None:
    keep = paired(8, 60)
    plan = leave_one_out(keep)
    assert plan.partners.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert plan.rules.tolist() == [CUT_NOTHING] * 8
    for target, partner in enumerate(plan.partners.tolist()):
        into, out = reference_masks(keep, target, partner, CUT_NOTHING)
        assert not (into | out)[[target, partner]].any()
    for sizes in sizes_by_membership(keep):
        assert (sizes == 3).all()


def test_models_that_are_complements_by_accident_stay() -> None:
    # With one record every model of the other kind is the target's complement: leaving all out would leave none.
    keep = torch.tensor([[True], [True], [False], [False], [False]])
    assert leave_one_out(keep, [0]).partners.tolist() == [-1]


def test_an_outside_target_keeps_all_references_of_a_balanced_design() -> None:
    keep = torch.cat([exact(8, 60, 4), coins(1, 60, 0.5)])
    n_in, n_out = next(reference_sizes(keep, leave_one_out(keep, [8])))
    assert (n_in == 4).all()
    assert (n_out == 4).all()


def test_an_outside_target_keeps_all_references_that_saw_nothing() -> None:
    keep = torch.cat([torch.zeros(5, 60, dtype=torch.bool), coins(1, 60, 0.5)])
    n_in, n_out = next(reference_sizes(keep, leave_one_out(keep, [5])))
    assert (n_in == 0).all()
    assert (n_out == 5).all()


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(coins(9, 20_000, 0.5), id="coins"),
        pytest.param(exact(10, 20_000, 5)[:9], id="part of an exact half"),
        pytest.param(exact(32, 20_000, 16)[:8], id="small part of an exact half"),
        pytest.param(coins(9, 20_000, 0.25), id="unfair coins"),
    ],
)
def test_sizes_that_vary_are_as_likely_for_members(keep: Tensor) -> None:
    assert set(leave_one_out(keep).rules.tolist()) == {CUT_TO_SMALLER}
    n_in, n_out = zip(*reference_sizes(keep, leave_one_out(keep)), strict=True)
    assert torch.equal(torch.stack(n_in), torch.stack(n_out))
    members, others = (sizes[:, 0].double() for sizes in sizes_by_membership(keep))
    error = (members.var() / len(members) + others.var() / len(others)).sqrt()
    # The pairs of a record are not independent; five of the simple standard errors leave room for that, and what a leak
    # looks like is shown below.
    assert (members.mean() - others.mean()).abs() < 5 * error


def test_uncut_sizes_of_a_part_of_an_exact_half_differ() -> None:
    keep = exact(10, 20_000, 5)[:9]
    n_out = torch.stack([out for _, out in reference_sizes(keep, leave_one_out(keep, None, "all"))])
    assert n_out[keep].double().mean() - n_out[~keep].double().mean() > 0.8


@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("keep", [exact(8, 50, 4), paired(8, 50), coins(9, 50, 0.3), exact(9, 50, 2)])
def test_masks_have_the_sizes_and_hold_other_models_of_their_kind(keep: Tensor, counts: str) -> None:
    plan = leave_one_out(keep, None, counts)
    rows = zip(*(part.tolist() for part in plan), reference_sizes(keep, plan), strict=True)
    for target, partner, rule, sizes in rows:
        into, out = reference_masks(keep, target, partner, rule)
        assert torch.equal(into.sum(0), sizes[0])
        assert torch.equal(out.sum(0), sizes[1])
        assert not (into & ~keep).any()
        assert not (out & keep).any()
        assert not (into | out)[target].any()


@pytest.mark.parametrize("counts", ["equal", "all"])
@pytest.mark.parametrize("keep", [exact(8, 50, 4), paired(8, 50), exact(9, 50, 2), coins(6, 50, 0.0)])
def test_the_missing_out_model(keep: Tensor, counts: str) -> None:
    plan = leave_one_out(keep, None, counts)
    missing = missing_out(keep, plan, first_sample=7)
    assert missing is not None
    for row, (target, partner, rule) in enumerate(zip(*(part.tolist() for part in plan), strict=True)):
        _, out = reference_masks(keep, target, partner, rule, first_sample=7)
        rest = ~keep
        concerned = missing[row] >= 0
        rest[missing[row][concerned], concerned.nonzero()[:, 0]] = False
        assert torch.equal(rest, out)


def test_several_may_be_missing_where_the_larger_group_is_cut_to_the_smaller() -> None:
    keep = coins(9, 50, 0.5)
    assert missing_out(keep, leave_one_out(keep)) is None


def test_blocks_choose_as_the_whole() -> None:
    keep = exact(16, 100, 8)
    whole = reference_masks(keep, 3, -1, CUT_ONE)
    blocks = [reference_masks(keep[:, first : first + 30], 3, -1, CUT_ONE, first) for first in range(0, 100, 30)]
    for side in (0, 1):
        assert torch.equal(torch.cat([block[side] for block in blocks], dim=1), whole[side])


def test_the_plan_of_a_target_does_not_depend_on_the_other_targets() -> None:
    keep = coins(9, 50, 0.5)
    every = leave_one_out(keep)
    some = leave_one_out(keep, [5, 2])
    for all_rows, rows in zip(every, some, strict=True):
        assert torch.equal(all_rows[[5, 2]], rows)


def test_the_choice_falls_evenly_and_whatever_the_target_is() -> None:
    # How often each place of the group is the one that is cut, for members (OUT is cut) and others (IN is cut).
    keep = exact(8, 40_000, 4)
    for target in (0, 5):
        for side, concerned in ((1, keep[target]), (0, ~keep[target])):
            group = (keep if side == 0 else ~keep)[:, concerned].clone()
            group[target] = False
            left = reference_masks(keep, target, -1, CUT_ONE)[side][:, concerned]
            places = (group.cumsum(0) - 1)[group & ~left]
            shares = torch.bincount(places, minlength=4).double() / concerned.sum()
            assert (shares - 0.25).abs().max() < 5 * np.sqrt(0.25 * 0.75 / int(concerned.sum()))


def splitmix(target: int, sample: int) -> int:
    """The hash in integers of any size."""
    mask = (1 << 64) - 1
    x = (sample + (target + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 33


def test_the_choice_is_the_same_everywhere_and_in_every_version() -> None:
    keep = torch.tensor([True, False, False, False, False, True])[:, None].repeat(1, 8)
    _, out = reference_masks(keep, 0, -1, CUT_ONE)
    cut = (~out[1:5]).long().argmax(0).tolist()
    assert cut == [splitmix(0, sample) * 4 >> 31 for sample in range(8)] == [3, 2, 2, 0, 1, 1, 2, 1]


def test_refusals() -> None:
    keep = exact(4, 5, 2)
    with pytest.raises(UnknownNameError, match="did you mean 'equal'"):
        leave_one_out(keep, None, "equals")
    with pytest.raises(InputError, match=r"targets: got \[4\] for 4 models; give rows in 0..3"):
        leave_one_out(keep, [4])
    with pytest.raises(InputError, match="keep: got dtype int64; accepted: bool"):
        leave_one_out(keep.long())
    with pytest.raises(InputError, match=r"keep: has shape \[5\]; give \[M, N\]"):
        leave_one_out(keep[0])
