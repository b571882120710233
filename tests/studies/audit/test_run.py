"""An audit runs end to end, continues after any loss with the same bytes, and never reuses a stale row."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fastmem.errors import FastmemError, InputError, StoreError
from fastmem.signals import Signals
from fastmem.studies.audit import AuditConfig, run_audit
from fastmem.studies.audit import run as run_module
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.training import Recipe

SmallAudit = Callable[..., AuditConfig]


def _bytes(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a run was interrupted."""
    files = [folder / "scores.csv", folder / "report_data.npz", *sorted((folder / "models").iterdir())]
    files += sorted(path for path in (folder / "signals.zarr").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_leaves_every_file_and_consistent_numbers(finished_once: Path) -> None:
    folder = finished_once
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "config.yaml",
        "models",
        "report.html",
        "report_data.npz",
        "scores.csv",
        "signals.zarr",
        "summary.json",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["attacks"]) == ["loss", "lira_online", "rmia_online"]
    assert summary["data"]["pool"] == 80
    assert summary["design"]["n_in"]["mean"] == pytest.approx(40)
    for entry in summary["attacks"].values():
        assert set(entry["controls"]) == {"shuffled", "never_saw"}
        assert 0 <= entry["auc_low"] <= entry["auc"] <= entry["auc_high"] <= 1
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    exposure = [float(row["exposure"]) for row in rows]
    assert len(rows) == 80
    assert exposure == sorted(exposure, reverse=True)
    pool = Signals.open(folder / "signals.zarr")
    accuracy = (pool.stat("hinge")[:, :, 0] > 0)[pool.keep].mean()
    assert summary["models"]["train_accuracy"]["mean"] == pytest.approx(accuracy, abs=0.02)
    assert len(list((folder / "models").glob("*.safetensors"))) == 8


@pytest.mark.usefixtures("without_report")
def test_config_yaml_runs_the_same_audit_again(finished: Path) -> None:
    values = yaml.safe_load((finished / "config.yaml").read_text())
    again = AuditConfig(**{**values, "recipe": Recipe(**values["recipe"]), "out": finished})
    assert run_audit(again).trained == 0


@pytest.mark.usefixtures("without_report")
def test_a_second_run_trains_nothing_and_gives_the_same_bytes(small_audit: SmallAudit, finished: Path) -> None:
    before = _bytes(finished)
    assert run_audit(small_audit()).trained == 0
    assert _bytes(finished) == before


@pytest.mark.usefixtures("without_report")
def test_workers_and_one_process_give_the_same_bytes(small_audit: SmallAudit, finished_once: Path) -> None:
    together = run_audit(small_audit(workers=2))
    assert together.trained == 16
    assert _bytes(together.run_dir) == _bytes(finished_once)


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"seed": 1}, 16),
        ({"recipe": Recipe(epochs=6)}, 16),
        ({"model_args": {"hidden": [17]}}, 16),
        ({"num_models": 10}, 18),
        ({"pool": 82}, 16),
        ({"design": "paired"}, 16),
        # What is asked of a model decides its row, not its weights: saved models are asked again, null ones trained.
        ({"queries": "flip"}, 8),
        ({"attacks": "loss,entropy"}, 8),
        ({"save_logits": True}, 8),
        ({"population": 30}, 8),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
@pytest.mark.usefixtures("without_report", "finished")
def test_a_changed_config_never_reuses_a_stale_row(
    small_audit: SmallAudit, tmp_path: Path, change: dict[str, object], trained: int
) -> None:
    changed = run_audit(small_audit(**change))
    assert changed.trained == trained
    clean = run_audit(small_audit(**change, out=tmp_path / "clean"))
    assert _bytes(changed.run_dir) == _bytes(clean.run_dir)


@pytest.mark.usefixtures("without_report")
def test_changed_data_of_the_same_shape_is_trained_again(small_audit: SmallAudit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), rng.integers(0, 4, 200)
    config = small_audit(data=str(tmp_path / "own.npz"))
    np.savez(tmp_path / "own.npz", x=x, y=y)
    assert run_audit(config).trained == 16
    assert run_audit(config).trained == 0
    np.savez(tmp_path / "own.npz", x=x[::-1], y=y[::-1])
    assert run_audit(config).trained == 16


@pytest.mark.usefixtures("without_report", "finished")
def test_changed_code_is_trained_again(small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmem.studies.audit.cohorts.code_version", lambda *packages: "another")
    assert run_audit(small_audit()).trained == 16


@pytest.mark.usefixtures("without_report")
def test_fresh_starts_over_and_touches_nothing_else(small_audit: SmallAudit, finished: Path) -> None:
    (finished / "notes.txt").write_text("mine")
    assert run_audit(small_audit(), fresh=True).trained == 16
    assert (finished / "notes.txt").read_text() == "mine"


def _truncate_row(folder: Path) -> None:
    chunk = next(path for path in (folder / "signals.zarr/margin/c/3").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-8])


def _damage_population(folder: Path) -> None:
    chunk = next(path for path in (folder / "signals.zarr/population/hinge/c/2").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(bytes(content))


def _truncate_model(folder: Path) -> None:
    model = folder / "models" / "0005.safetensors"
    model.write_bytes(model.read_bytes()[:-4])


def _lose_model(folder: Path) -> None:
    (folder / "models" / "0001.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "trained"), [(_truncate_row, 0), (_damage_population, 0), (_truncate_model, 1), (_lose_model, 1)]
)
@pytest.mark.usefixtures("without_report")
def test_damage_costs_the_rows_it_hit(
    small_audit: SmallAudit, finished: Path, damage: Callable[[Path], None], trained: int
) -> None:
    before = _bytes(finished)
    damage(finished)
    assert run_audit(small_audit()).trained == trained
    assert _bytes(finished) == before


def test_a_folder_that_holds_something_else_is_refused(small_audit: SmallAudit) -> None:
    store = small_audit().run_dir / "signals.zarr"
    store.mkdir(parents=True)
    (store / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="other files"):
        run_audit(small_audit())
    assert (store / "thesis.tex").read_text() == "mine"


_KILLED = """
import sys
from pathlib import Path
from fastmem.studies.audit import AuditConfig, cohorts, run_audit
from fastmem.training import Recipe
cohorts.code_version = lambda *packages: "fixed"
run_audit(AuditConfig(out=Path(sys.argv[1]), pool=80, population=40, bystanders=40, model_args={"hidden": [16]},
    num_models=8, null_models=8, recipe=Recipe(epochs=300), attacks="loss,lira_online,rmia_online", workers=2))
"""


@pytest.mark.usefixtures("without_report")
def test_a_killed_run_continues_to_the_same_bytes(
    small_audit: SmallAudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An edit of the sources while this runs would rightly make the rows stale.
    monkeypatch.setattr("fastmem.studies.audit.cohorts.code_version", lambda *packages: "fixed")
    undisturbed = _bytes(run_audit(small_audit(recipe=Recipe(epochs=300), out=tmp_path / "calm")).run_dir)
    config = small_audit(recipe=Recipe(epochs=300))
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(config.run_dir)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((config.run_dir / "models").glob("*.safetensors"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (config.run_dir / "summary.json").exists()
    resumed = run_audit(config)
    assert 0 < resumed.trained < 16
    assert _bytes(resumed.run_dir) == undisturbed


@pytest.mark.usefixtures("without_report")
def test_ctrl_c_says_what_is_kept(small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = run_module.train_and_query, []

    def interrupted(job: object, task: object) -> object:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job, task)

    monkeypatch.setattr(run_module, "train_and_query", interrupted)
    with pytest.raises(StudyInterruptedError, match=r"^\d+ of 16 models are kept in .*run$"):
        run_audit(small_audit())
    monkeypatch.undo()
    assert 0 < run_audit(small_audit()).trained < 16


def test_two_processes_do_not_share_a_folder(small_audit: SmallAudit) -> None:
    from fastmem.engine import RunFolder

    with RunFolder(small_audit().run_dir).locked(), pytest.raises(StoreError, match="another fastmem process"):
        run_audit(small_audit())


def test_a_full_disk_is_noticed_before_anything_is_written(
    small_audit: SmallAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"^out: .* 1e\+03 B free|^out: .*1000 B free"):
        run_audit(small_audit())
    assert not small_audit().run_dir.exists()


_FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.argv = ["fastmem", "audit", "--out", sys.argv[1], "--pool", "80", "--population", "40", "--bystanders", "40",
    "--num-models", "8", "--null-models", "0", "--recipe.epochs", "1", "--workers", "1", "--attacks", "loss"]
from fastmem.cli import main
raise SystemExit(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are POSIX")
def test_a_disk_that_fills_up_on_the_way_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path / "run")], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("fastmem: error")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_a_recipe_that_cannot_run_is_refused_before_anything_is_written(small_audit: SmallAudit) -> None:
    with pytest.raises(InputError, match="mixed_precision"):
        run_audit(small_audit(recipe=Recipe(mixed_precision="bf16")))
    assert not small_audit().run_dir.exists()


def test_a_diverging_model_is_named(small_audit: SmallAudit) -> None:
    with pytest.raises(FastmemError, match=r"model \d+.* diverged: its mean loss"):
        run_audit(small_audit(recipe=Recipe(epochs=3, learning_rate=1e30, schedule="constant")))


@pytest.mark.usefixtures("without_report")
def test_a_memorising_model_is_found_and_the_controls_are_not(small_audit: SmallAudit) -> None:
    """Random labels can only be learned by heart: LiRA must see it, and see nothing in either control."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (900, 8, 8), dtype=np.uint8), rng.integers(0, 10, 900)
    data = small_audit().run_dir.parent / "noise.npz"
    np.savez(data, x=x, y=y)
    config = small_audit(
        data=str(data),
        pool=300,
        population=100,
        bystanders=300,
        num_models=32,
        null_models=16,
        model_args={"hidden": [64]},
        recipe=Recipe(epochs=40),
        attacks="lira_online,loss",
    )
    summary = run_audit(config).summary
    lira = summary["attacks"]["lira_online"]
    assert lira["auc_low"] > 0.9
    assert lira["tpr_at_fpr"]["0.01"]["tpr"] > summary["attacks"]["loss"]["tpr_at_fpr"]["0.01"]["realised_fpr"]
    for control in lira["controls"].values():
        half = (control["auc_high"] - control["auc_low"]) / 2
        assert abs(control["auc"] - 0.5) < 1.7 * half
    assert "memorises" in summary["answer"]
