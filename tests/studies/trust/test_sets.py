"""The split keeps its parts apart, every set is what its name says, and directions never mix up two models' records."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmem.data import load_dataset
from fastmem.errors import InputError
from fastmem.studies.trust import TrustConfig
from fastmem.studies.trust.directions import make_direction
from fastmem.studies.trust.plan import make_plan
from fastmem.studies.trust.sets import make_sets, resolve_names, split_trust


def test_no_record_is_in_two_parts() -> None:
    split = split_trust(load_dataset("digits"), None, None, None, 2500, 0)
    assert (len(split.pool), len(split.test), len(split.held_out)) == (800, 590, 407)
    parts = [{x.tobytes() for x in part.x.numpy()} for part in (split.pool, split.test, split.held_out)]
    # Two of the digits are the same picture; they may lie in different parts.
    assert len(parts[0] & parts[1]) + len(parts[0] & parts[2]) + len(parts[1] & parts[2]) <= 2
    assert not set(split.pool_index) & set(split.test_index)


def test_sets_by_name() -> None:
    split = split_trust(load_dataset("digits"), 100, 40, 20, 25, 0)
    names = resolve_names(("all",), is_image=True)
    sets = {records.name: records for records in make_sets(names, split, 25, 0, None)}
    assert list(sets) == ["test", "permuted", "scaled", "unnormalised", "noise", "photos"]
    assert [len(records.x) for records in sets.values()] == [40, 40, 40, 40, 25, 25]
    assert [records.halves for records in sets.values()] == [True] * 4 + [False] * 2
    assert np.array_equal(np.sort(sets["permuted"].x, axis=None), np.sort(sets["test"].x, axis=None))
    assert sets["permuted"].y is None
    assert sets["scaled"].view == "scaled"
    assert make_sets(("digits",), split, 25, 0, None)[0].x.shape == (25, 1, 8, 8)


def test_images_are_not_asked_of_features() -> None:
    assert resolve_names(("all",), is_image=False) == ("test", "permuted", "scaled", "unnormalised", "noise")
    with pytest.raises(InputError, match="nonmembers: 'fake' for records that are no images"):
        resolve_names(("fake",), is_image=False)


def test_directions(small_trust: Callable[..., TrustConfig]) -> None:
    plan = make_plan(small_trust())
    job, places = plan.job, plan.job.places
    there, back = (make_direction(job, target, 20, 0) for target in (0, 1))
    assert (there.target, there.shadow, back.target, back.shadow) == (0, 1, 1, 0)
    assert np.array_equal(there.shadow_members, back.members)
    assert np.array_equal(there.shadow_test, back.sets["test"])
    assert job.train[0, there.members].all()
    assert not job.train[1, there.members].any()
    assert not set(there.sets["test"]) & set(there.shadow_test)
    offsets = [there.sets[name] - places[name].start for name in ("test", "permuted", "scaled")]
    assert all(np.array_equal(offsets[0], other) for other in offsets)
