"""The page of an audit, drawn from a stored run: complete, self-contained, robust to what is missing, deaf to markup."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmem.errors import StoreError
from fastmem.report import write_audit_report
from fastmem.report.tables import TIMES

EVIL = "<img src=x onerror=alert(1)></style><script>'\""
SECTIONS = [
    *("attacks", "curves", "scores", "records", "training", "design", "time", "environment", "warnings"),
    *("configuration", "reading"),
]


def change_arrays(run_dir: Path, drop: str = "", **more: Any) -> None:
    file = run_dir / "report_data.npz"
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files if not (drop and re.search(drop, name))}
    np.savez(file, **(arrays | more))


def test_an_old_report_still_opens(run_dir: Path, read_page) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["schema"] == 1
    file = write_audit_report(run_dir)
    assert file == run_dir / "report.html"
    page = read_page(file)
    assert [section["id"] for section in page.tags("section")] == SECTIONS
    assert summary["answer"] in page.text
    assert [link["href"] for link in page.tags("a")] == [f"#{anchor}" for anchor in SECTIONS]
    assert len(page.tags("img")) == 24
    for attack in summary["attacks"].values():
        assert attack["title"] in page.section("attacks")


def test_the_same_files_give_the_same_bytes(run_dir: Path) -> None:
    first = write_audit_report(run_dir).read_bytes()
    assert write_audit_report(str(run_dir)).read_bytes() == first


def test_the_largest_audit_stays_small(write_run, tmp_path: Path, read_page) -> None:
    file = write_audit_report(write_run(tmp_path, models=16, records=200))
    change_arrays(
        tmp_path, exposed_picture=np.random.default_rng(0).integers(0, 256, (24, 3, 224, 224), dtype=np.uint8)
    )
    file = write_audit_report(tmp_path)
    assert file.stat().st_size < 2e6
    read_page(file)


def test_key_figures_stand_in_the_head(run_dir: Path, read_page) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    best = summary["attacks"][summary["headline"]["attack"]]
    head = read_page(write_audit_report(run_dir)).source.partition("<main>")[0]
    for figure in (
        f"{100 * best['tpr_at_fpr']['0.01']['tpr']:.1f}%",
        f"{best['auc']:.3f}",
        f"16 {TIMES} 150",
        "100.0 / 93.1%",
        "12 of 12",
    ):
        assert figure in head
    assert "guessing: 0.5" in head


def test_the_head_speaks_of_the_attack_that_the_study_chose_beforehand(edit, read_page) -> None:
    def choose(summary: dict[str, Any]) -> None:
        summary["headline"] = {"attack": "reference", "rule": "a rule made before"}

    page = read_page(write_audit_report(edit(choose)))
    title = "Reference (Attack-R)"
    assert f"TPR at 1% FPR, {title}" in page.source.partition("<main>")[0]
    assert title in page.source.partition('class="highlight"')[2].partition("</tr>")[0]
    assert "a rule made before" in page.section("attacks")
    assert f"score of {title}" in page.section("scores")
    legend = page.section("curves").partition('class="legend"')[2]
    assert legend.index(title) < legend.index("LiRA online"), "the headline comes first in the legend"


def test_without_a_choice_the_strongest_attack_leads(edit, read_page) -> None:
    page = read_page(write_audit_report(edit(lambda summary: summary.pop("headline"))))
    assert "TPR at 1% FPR, LiRA online" in page.source.partition("<main>")[0]


def test_records_say_in_how_many_models_they_are_found(run_dir: Path, read_page) -> None:
    with np.load(run_dir / "report_data.npz") as stored:
        shown = stored["exposed_index"].tolist()
    found = {0: "0.8", 1: "0.5", 3: ""}
    rows = [f"{record},1,{-place},{found.get(place, '0.2')}" for place, record in enumerate(shown)]
    (run_dir / "scores.csv").write_text("\n".join(["record,label,exposure,found_at_1pct_fpr", *rows]))
    section = read_page(write_audit_report(run_dir)).section("records")
    assert f"2 of {len(shown) - 1} records are found in at least half" in section
    assert section.count("found in 80%") == section.count("found in 50%") == 1
    assert section.count("found in 20%") == len(shown) - 3


def test_names_from_outside_stay_text(edit, read_page) -> None:
    def poison(summary: dict[str, Any]) -> None:
        summary["answer"] = summary["study"] = summary["created"] = EVIL
        summary["data"] |= {"name": EVIL, "class_names": [EVIL] * 10}
        summary["models"]["name"] = EVIL
        summary["config"] = {EVIL: {"deep": EVIL, "list": [EVIL]}}
        summary["warnings"] = [EVIL]
        summary["stages"] = {EVIL: 1.0}
        summary["environment"] = {EVIL: EVIL}
        for attack in summary["attacks"].values():
            attack |= {"title": EVIL, "options": {EVIL: EVIL}, "warnings": [EVIL]}
        summary["attacks"][EVIL] = summary["attacks"].pop("loss")

    page = read_page(write_audit_report(edit(poison)))
    assert len(page.tags("img")) == 24
    assert page.text.count(EVIL) > 60
    assert f"label 8 {EVIL}" in "".join(image["alt"] for image in page.tags("img"))


def test_class_names_stand_beside_labels(edit, run_dir: Path, read_page) -> None:
    names = [f"kind-{place}" for place in range(10)]
    page = read_page(write_audit_report(edit(lambda summary: summary["data"].update(class_names=names))))
    with np.load(run_dir / "report_data.npz") as stored:
        label = int(stored["exposed_label"][0])
    assert f"{label} kind-{label}" in page.section("records")


def test_a_control_off_chance_is_marked_in_head_table_and_words(edit, read_page) -> None:
    def leak(summary: dict[str, Any]) -> None:
        summary["attacks"]["loss"]["controls"]["never_saw"] |= {"auc": 0.42, "auc_low": 0.41, "auc_high": 0.43}
        summary["attacks"]["population"]["controls"]["shuffled"] |= {"auc": 0.512, "auc_low": 0.502, "auc_high": 0.522}

    page = read_page(write_audit_report(edit(leak)))
    assert page.section("attacks").count('<span class="mark bad">far off chance</span>') == 1
    assert page.section("attacks").count('<span class="mark warn">misses 0.5</span>') == 1
    assert "2 of 12 control intervals miss chance" in page.text
    head = page.source.partition("<main>")[0]
    assert "10 of 12" in head
    assert "1 far off chance" in head
    assert 'class="card bad"' in head


def test_one_control_missed_by_luck_is_no_alarm(edit, read_page) -> None:
    def luck(summary: dict[str, Any]) -> None:
        summary["attacks"]["loss"]["controls"]["never_saw"] |= {"auc": 0.512, "auc_low": 0.502, "auc_high": 0.522}

    head = read_page(write_audit_report(edit(luck))).source.partition("<main>")[0]
    assert "the others miss by no more than luck" in head
    assert not re.search('class="card (bad|warn|good)"', head)


def test_controls_at_chance_carry_no_mark(run_dir: Path, read_page) -> None:
    page = read_page(write_audit_report(run_dir))
    assert 'class="mark' not in page.section("attacks").partition("<details>")[0]
    assert "All 12 control intervals hold chance" in page.text


def test_levels_that_cannot_be_resolved_give_the_reason_and_not_the_value(edit, read_page) -> None:
    def shrink(summary: dict[str, Any]) -> None:
        for attack in summary["attacks"].values():
            for level, found in attack["tpr_at_fpr"].items():
                found |= {"n_out": 60, "resolvable": float(level) * 60 >= 1, "tpr": 0.7777}

    page = read_page(write_audit_report(edit(shrink)))
    head = page.source.partition("<main>")[0]
    assert "not resolvable" in head
    assert "needs 100 non-members, has 60" in head
    table = page.section("attacks").partition("<details>")[0]
    assert table.count("needs 1,000 non-members, has 60") == 6
    assert "77.8%" not in table
    assert "TPR at 1% FPR</text>" not in page.section("curves"), "no comparison at a level that nobody resolves"


def test_missing_parts_drop_out(edit, run_dir: Path, read_page) -> None:
    def strip(summary: dict[str, Any]) -> None:
        for name in (
            "models",
            "stages",
            "environment",
            "config",
            "warnings",
            "created",
            "fastmem_version",
            "config_hash",
            "headline",
        ):
            summary.pop(name)
        summary["data"].pop("fingerprint")
        summary["attacks"].pop("population")
        for attack in summary["attacks"].values():
            for name in ("controls", "ppv", "per_target", "options", "seconds", "warnings"):
                attack.pop(name)

    edit(strip)
    change_arrays(run_dir, drop="exposed|hist|roc")
    page = read_page(write_audit_report(run_dir))
    anchors = [section["id"] for section in page.tags("section")]
    assert anchors == ["attacks", "curves", "records", "design", "reading"]
    assert not page.tags("img")
    assert "No control was run" in page.text
    assert "nan" not in page.text.lower().split()


def test_data_without_pictures(run_dir: Path, read_page) -> None:
    change_arrays(run_dir, drop="exposed_picture|exposed_rank_std")
    page = read_page(write_audit_report(run_dir))
    assert not page.tags("img")
    assert page.section("records").count("<li>") == 24
    assert "rank ±" not in page.section("records").partition("<ol")[2]


def test_numbers_that_are_not_finite_are_dashes(edit, read_page) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: spoil(inner) for name, inner in value.items()}
        return math.nan if isinstance(value, float) else value

    def change(summary: dict[str, Any]) -> None:
        for name in ("attacks", "models", "design", "stages", "data"):
            summary[name] = spoil(summary[name])

    page = read_page(write_audit_report(edit(change)))
    assert "nan" not in re.findall(r"\w+", page.text.lower())


def test_a_run_without_attacks(edit, read_page) -> None:
    page = read_page(write_audit_report(edit(lambda summary: summary.pop("attacks"))))
    assert "This run holds no attack" in page.text


def test_nothing_but_a_schema_is_enough(run_dir: Path, read_page) -> None:
    (run_dir / "summary.json").write_text('{"schema": 1}')
    np.savez(run_dir / "report_data.npz")
    (run_dir / "scores.csv").write_text("record,label,exposure\n")
    read_page(write_audit_report(run_dir))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"exposed_label": np.arange(3)}, "exposed_label has not one entry for each of the 24 exposed records"),
        ({"exposed_picture": np.zeros((24, 1, 8, 8))}, "exposed_picture is float64 of 4 dimensions"),
        ({"exposed_picture": np.zeros((24, 8, 8), np.uint8)}, "exposed_picture is uint8 of 3 dimensions"),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_the_old_report_stays(run_dir: Path, change: Any, problem: str) -> None:
    before = write_audit_report(run_dir).read_bytes()
    change_arrays(run_dir, **change)
    with pytest.raises(StoreError, match=f"report_data.npz: {problem}"):
        write_audit_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_missing_files_are_one_line_errors(run_dir: Path) -> None:
    for name in ("scores.csv", "report_data.npz", "summary.json"):
        (run_dir / name).unlink()
        with pytest.raises(StoreError, match=f"{name}: no such file") as caught:
            write_audit_report(run_dir)
        assert "\n" not in str(caught.value)


def test_labels_of_the_most_exposed_tenth_are_compared_with_the_pool(run_dir: Path, read_page) -> None:
    rows = [f"{place},{7 if place < 12 else place % 4},{-place}" for place in range(150)]
    (run_dir / "scores.csv").write_text("\n".join(["record,label,exposure", *rows]))
    section = read_page(write_audit_report(run_dir)).section("records")
    # 12 of the first 15 are label 7, 12 of all 150: 80% against 8%.
    first_row = section.partition("<tbody>")[2].partition("</tr>")[0]
    assert [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", first_row)] == [
        *("7", "80.0%", "8.0%", f"10.00 {TIMES}")
    ]


def test_a_model_of_the_users_own_and_levels_that_ties_hide(edit, read_page) -> None:
    def change(summary: dict[str, Any]) -> None:
        summary["target"] = {"train_accuracy": 0.987, "test_accuracy": 0.456}
        for attack in summary["attacks"].values():
            attack["tpr_at_fpr"]["0.001"] |= {
                "resolvable": False,
                "unresolved": "half of the others share the top score",
            }

    page = read_page(write_audit_report(edit(change)))
    assert "train accuracy of the audited model 98.7%" in page.text
    assert "test accuracy of the audited model 45.6%" in page.text
    assert "half of the others share the top score" in page.text
