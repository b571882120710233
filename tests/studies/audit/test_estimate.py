"""The estimate is an upper bound where it counts, and of the right size where it measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastmem.studies.audit import AuditConfig
from fastmem.studies.audit.estimate import bytes_on_disk, bytes_there, estimate
from fastmem.studies.audit.plan import make_plan
from fastmem.training import Recipe

SmallAudit = Callable[..., AuditConfig]


def test_the_disk_estimate_is_an_upper_bound_but_not_a_wild_one(small_audit: SmallAudit, finished_once: Path) -> None:
    report = (finished_once / "report.html").stat().st_size
    used = bytes_there(finished_once) - report
    bound = bytes_on_disk(make_plan(small_audit()))
    assert used < bound
    assert bound - (1 << 20) < 3 * used  # the allowance for headers and the report aside


def test_disk_grows_with_what_is_kept(small_audit: SmallAudit) -> None:
    plain = bytes_on_disk(make_plan(small_audit()))
    logits = bytes_on_disk(make_plan(small_audit(save_logits=True)))
    assert logits - plain == 16 * (80 + 40) * 10 * 4
    without = bytes_on_disk(make_plan(small_audit(save_models=False)))
    assert plain - without >= 8 * 4 * (64 * 16 + 16 + 16 * 10 + 10)


def test_an_empty_place_holds_nothing(tmp_path: Path) -> None:
    assert bytes_there(tmp_path / "nowhere") == 0


def test_times_scale_with_the_work(small_audit: SmallAudit) -> None:
    small = make_plan(small_audit())
    cost = estimate(small)
    assert cost.steps == 5  # 40 records in one batch, 5 epochs
    assert cost.train_seconds == pytest.approx(16 * 5 * cost.step_seconds)
    assert min(cost.step_seconds, cost.query_seconds, cost.attack_seconds) > 0
    assert cost.memory > 50 << 20
    assert estimate(make_plan(small_audit(recipe=Recipe(epochs=50), workers=2))).steps == 50
    names = [name for name, _ in cost.lines(small)]
    assert names == ["data", "models", "training", "attacks", "time", "memory", "disk"]
