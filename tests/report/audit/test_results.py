"""What the report reads out of a summary: order, controls, levels that cannot be resolved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastmem.errors import StoreError
from fastmem.report.artifacts import Fields
from fastmem.report.audit.results import Estimate, control_tally, read_attacks


def level(tpr: float | None, **more: Any) -> dict[str, Any]:
    return {"tpr": tpr, "realised_fpr": 0.01, "n_in": 1000, "n_out": 1000, "resolvable": True, **more}


def attacks(**entries: dict[str, Any]):
    return read_attacks(Fields({"attacks": entries}, "summary"))


def test_an_estimate_covers_the_ends_of_its_interval() -> None:
    estimate = Estimate(0.52, 0.5, 0.54)
    assert estimate.covers(0.5) is True
    assert estimate.covers(0.54) is True
    assert estimate.covers(0.4999) is False
    assert estimate.covers(math.nan) is None
    assert Estimate(0.5).covers(0.5) is None
    assert not Estimate(0.5, 0.4).has_interval


def test_the_strongest_by_tpr_at_one_percent_leads() -> None:
    ordered = attacks(
        loss={"auc": 0.9, "tpr_at_fpr": {"0.01": level(0.01)}},
        lira_online={"auc": 0.6, "tpr_at_fpr": {"0.01": level(0.2)}},
        rmia_online={"auc": 0.7, "tpr_at_fpr": {"0.01": level(0.2)}},
        reference={"auc": 0.99, "tpr_at_fpr": {"0.01": level(0.9, resolvable=False)}},
        entropy={"auc": None, "tpr_at_fpr": {}},
        max_prob={"auc": 0.4, "tpr_at_fpr": {"0.01": level(None)}},
    )
    assert [attack.key for attack in ordered] == [
        "rmia_online",  # equal TPR, larger AUC
        "lira_online",
        "loss",
        "reference",  # its level cannot be resolved: by AUC
        "max_prob",
        "entropy",
    ]


def test_a_level_says_why_it_cannot_be_resolved() -> None:
    (attack,) = attacks(
        loss={
            "tpr_at_fpr": {
                "0.01": level(0.1),
                "1e-05": level(0.0, n_out=32000, resolvable=False),
                "0.001": {"tpr": 0.1, "n_out": 999},
                "0.0001": {"tpr": 0.1, "resolvable": False},
                "0": level(0.0, n_out=32000, resolvable=False),
            }
        }
    )
    assert list(attack.levels) == [0.0, 1e-5, 1e-4, 1e-3, 1e-2]
    assert attack.levels[0.01].reason == ""
    assert attack.levels[1e-5].reason == "needs 100,000 non-members, has 32,000"
    assert attack.levels[1e-3].reason == "needs 1,000 non-members, has 999"
    assert attack.levels[1e-4].reason == "too few non-members"
    assert attack.levels[0.0].reason == "below 1 in 32,000"
    assert math.isnan(attack.resolved_tpr(1e-5))
    assert attack.tpr(0.01) == attack.resolved_tpr(0.01) == 0.1
    assert math.isnan(attack.tpr(0.1))


def test_controls_are_counted_by_whether_they_hold_chance() -> None:
    found = attacks(
        a={"controls": {"shuffled": {"auc": 0.5, "auc_low": 0.49, "auc_high": 0.51}}},
        b={"controls": {"shuffled": {"auc": 0.42, "auc_low": 0.41, "auc_high": 0.43}, "never_saw": {"auc": 0.5}}},
        c={"controls": {"shuffled": None}},
    )
    by_key = {attack.key: attack.controls for attack in found}
    assert control_tally(found) == (1, 2)
    assert {key: [control.far_off for control in controls.values()] for key, controls in by_key.items()} == {
        "a": [False],
        "b": [True, False],
        "c": [],
    }


def test_families_share_colours_and_unknown_attacks_are_other() -> None:
    family = {
        attack.key: (attack.family, attack.token)
        for attack in attacks(
            lira_online={}, lira_offline_cdf_fixed={}, rmia_offline={}, base_online={}, loss={}, top3={}, mine={}
        )
    }
    assert family["lira_online"] == family["lira_offline_cdf_fixed"]
    assert family["loss"] == family["top3"]
    assert family["mine"][0] == "other"
    assert len({token for _, token in family.values()}) == 5


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"auc": "high"}, "attacks.x.auc is not a number"),
        ({"tpr_at_fpr": [1]}, "attacks.x.tpr_at_fpr is not an object"),
        ({"tpr_at_fpr": {"one percent": {}}}, "attacks.x.tpr_at_fpr.one percent is not named by a number"),
        ({"tpr_at_fpr": {"0.01": 3}}, "attacks.x.tpr_at_fpr.0.01 is not an object"),
        ({"controls": {"shuffled": 0.5}}, "attacks.x.controls.shuffled is not an object"),
        ({"warnings": "all well"}, "attacks.x.warnings is not a list"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_by_its_path(entry: dict[str, Any], path: str) -> None:
    with pytest.raises(StoreError, match=f"summary: {path}"):
        attacks(x=entry)


def test_the_stored_run_is_read_whole(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    for attack in read_attacks(Fields(summary, "summary")):
        stored = summary["attacks"][attack.key]
        assert attack.auc == Estimate(stored["auc"], stored["auc_low"], stored["auc_high"])
        assert {f"{level:g}": found.tpr.value for level, found in attack.levels.items()} == {
            level: found["tpr"] for level, found in stored["tpr_at_fpr"].items()
        }
        assert attack.ppv[0.1][0.01] == stored["ppv"]["0.1"]["0.01"]
        assert attack.target_tpr[0.01].mean == stored["per_target"]["tpr_at_fpr"]["0.01"]["mean"]
        assert set(attack.controls) == {"shuffled", "never_saw"}
