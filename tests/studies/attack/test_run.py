"""Attacks on saved answers: the same numbers as from the audit's own signals, and a word for every misfit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmem.attacks import ATTACKS
from fastmem.errors import FastmemError, InputError, StoreError, UnknownNameError
from fastmem.signals import Signals
from fastmem.studies.attack import AttackConfig, run_attack

Arrays = dict[str, np.ndarray]
Attack = Callable[..., dict[str, Any]]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    keep = rng.random((8, 150)).argsort(axis=0) < 4
    labels = rng.integers(0, 5, 150)
    logits = rng.normal(size=(8, 150, 5)).astype(np.float32)
    logits[:, np.arange(150), labels] += 3 * keep
    return {
        "logits": logits,
        "keep": keep,
        "labels": labels,
        "population_logits": rng.normal(size=(8, 60, 5)).astype(np.float32),
        "population_labels": rng.integers(0, 5, 60),
    }


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """Saves arrays and runs the attacks on them."""
    monkeypatch.setattr("fastmem.studies.attack.run.write_audit_report", lambda folder: None)

    def run(arrays: Arrays, **options: Any) -> dict[str, Any]:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        paths = {name: tmp_path / f"{name}.npy" for name in arrays}
        return run_attack(AttackConfig(**{**paths, "out": tmp_path / "run", "workers": 1, **options}))

    return run


def test_all_attacks_run_on_saved_logits(attack: Attack, arrays: Arrays, tmp_path: Path) -> None:
    summary = attack(arrays)
    assert set(summary["attacks"]) == set(ATTACKS)
    assert summary["attacks"]["lira_online"]["auc_low"] > 0.6
    for entry in summary["attacks"].values():
        assert set(entry["controls"]) == {"shuffled"}
    written = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert written == {"config.yaml", "report_data.npz", "scores.csv", "signals.zarr", "summary.json"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["answer"] == summary["answer"]


def test_stored_statistics_are_those_of_the_logits(attack: Attack, arrays: Arrays, tmp_path: Path) -> None:
    attack(arrays, attacks="entropy,lira_online")
    stored = Signals.open(tmp_path / "run" / "signals.zarr")
    direct = Signals(arrays["labels"], arrays["keep"], arrays["logits"][:, :, None])
    for name in ("margin", "entropy"):
        np.testing.assert_array_equal(stored.stat(name), direct.stat(name))


def test_queries_have_an_axis_of_their_own(attack: Attack, arrays: Arrays) -> None:
    del arrays["population_logits"], arrays["population_labels"]
    once = attack(arrays, attacks="loss")["attacks"]["loss"]["auc"]
    arrays["logits"] = np.repeat(arrays["logits"][:, :, None], 2, axis=2)
    assert attack(arrays, attacks="loss")["attacks"]["loss"]["auc"] == pytest.approx(once)


def test_a_runs_folder_gives_the_audits_numbers(finished_once: Path, attack: Attack) -> None:
    summary = attack({}, signals=finished_once, attacks="loss,lira_online")
    audit = json.loads((finished_once / "summary.json").read_text())
    for key in ("loss", "lira_online"):
        ours, theirs = summary["attacks"][key], audit["attacks"][key]
        assert ours["auc"] == theirs["auc"]
        assert ours["controls"]["never_saw"]["auc"] == theirs["controls"]["never_saw"]["auc"]


def test_what_cannot_work_is_left_out_of_all_and_named(attack: Attack, arrays: Arrays) -> None:
    del arrays["population_logits"], arrays["population_labels"]
    summary = attack(arrays)
    assert "rmia_online" not in summary["attacks"]
    assert any(warning.startswith("rmia_online was left out: ") for warning in summary["warnings"])


def test_one_model_leaves_the_attacks_that_need_no_reference(attack: Attack, arrays: Arrays) -> None:
    few = {name: arrays[name][:1] for name in ("logits", "keep")}
    summary = attack({**few, "labels": arrays["labels"]})
    assert "loss" in summary["attacks"]
    assert "lira_online" not in summary["attacks"]
    assert "without shadow models" in summary["answer"]


def _object_array() -> np.ndarray:
    return np.array([{"a": 1}, None], dtype=object)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": lambda a: a["keep"].astype(np.int64)}, r"^keep: dtype int64 is not boolean"),
        ({"keep": lambda a: a["keep"][:, :-1]}, r"^keep: shape \(8, 149\) for 150 labels"),
        ({"keep": lambda a: a["keep"][:4]}, r"^logits: shape \(8, 150, 1, 5\) for keep \(4, 150\)"),
        ({"labels": lambda a: a["labels"] + 1}, r"^labels: \d+ values out of range, first 5"),
        ({"labels": lambda a: a["labels"].astype(float)}, r"^labels: dtype float64 is not integer"),
        ({"logits": lambda a: a["logits"].astype(int)}, r"^logits: dtype int64"),
        ({"logits": lambda a: a["logits"][0]}, r"^logits: shape \(150, 5\)"),
        (
            {"logits": lambda a: np.where(a["logits"] > 3, np.nan, a["logits"])},
            r"^logits: \d+ NaN values, first at model",
        ),
        (
            {"logits": lambda a: np.where(a["logits"] > 3, np.inf, a["logits"])},
            r"^logits: \d+ infinite values, first at",
        ),
        ({"logits": lambda a: _object_array()}, r"^logits: .*logits.npy' holds Python objects, which only pickle"),
        ({"keep": lambda a: np.ones_like(a["keep"])}, r"^keep: model 0 trained on 150 of the 150 records"),
        ({"population_logits": lambda a: a["population_logits"][:4]}, r"^population_logits: shape \(4, 60, 1, 5\)"),
        ({"population_labels": lambda a: a["population_labels"][:-1]}, r"^population_logits: shape"),
        ({"population_logits": lambda a: np.full((8, 60, 5), np.nan)}, r"^population_logits: 2400 NaN values"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    attack: Attack, arrays: Arrays, tmp_path: Path, change: dict[str, Callable[[Arrays], np.ndarray]], message: str
) -> None:
    arrays |= {name: make(arrays) for name, make in change.items()}
    with pytest.raises(InputError, match=message) as caught:
        attack(arrays)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_record_with_too_few_models_is_refused(attack: Attack, arrays: Arrays, tmp_path: Path) -> None:
    arrays["keep"][:, 17] = np.arange(8) < 1
    with pytest.raises(InputError, match=r"record 17 .*IN"):
        attack(arrays, attacks="lira_online")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": None}, InputError, "no --labels"),
        ({"population_labels": None}, InputError, "population_labels: not given"),
        ({"logits": Path("missing.npy")}, InputError, r"^logits: no file 'missing.npy'"),
        ({"attacks": "lira"}, UnknownNameError, "lira_online"),
        ({"attacks": ","}, InputError, "attacks: none given"),
        ({"targets": 9}, InputError, "^targets: 9; there are 8 models"),
        ({"targets": 0}, InputError, "^targets: 0"),
        ({"signals": Path("nowhere")}, InputError, "^signals: given beside"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(
    attack: Attack, arrays: Arrays, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attack(arrays, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (8,", b"not numpy at all"])
def test_a_file_that_is_no_npy_is_refused(attack: Attack, arrays: Arrays, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"^logits: .*broken.npy'"):
        attack(arrays, logits=tmp_path / "broken.npy")


def test_an_archive_of_several_arrays_is_refused(attack: Attack, arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", a=arrays["logits"], b=arrays["keep"])
    with pytest.raises(InputError, match="several arrays"):
        attack(arrays, logits=tmp_path / "both.npz")


def test_signals_that_are_not_there_or_damaged_are_refused(attack: Attack, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no signals"):
        attack({}, signals=tmp_path / "nowhere", out=tmp_path / "out")
    chunk = next(path for path in (finished / "signals.zarr/margin/c/3").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-8])
    with pytest.raises(FastmemError, match="row 3"):
        attack({}, signals=finished, attacks="lira_online", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_statistic_that_was_not_stored_is_named(attack: Attack, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="entropy"):
        attack({}, signals=finished, attacks="entropy", out=tmp_path / "out")
