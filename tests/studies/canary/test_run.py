"""A canary study runs end to end, continues after any loss with the same bytes, and never reuses a stale model."""

from __future__ import annotations

import csv
import json
import math
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
from PIL import Image

from fastmem.engine import RunFolder
from fastmem.errors import InputError, StoreError
from fastmem.metrics import memorisation_test
from fastmem.studies.canary import CanaryConfig, run_canary
from fastmem.studies.canary import run as run_module
from fastmem.studies.canary.questions import write_questions
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.training import Recipe, load_checkpoint

SmallCanary = Callable[..., CanaryConfig]


def _bytes(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a run was interrupted."""
    files = [folder / "scores.csv", folder / "report_data.npz", *(folder / "rows").iterdir()]
    files += (folder / "models").iterdir() if (folder / "models").is_dir() else []
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def test_a_run_leaves_every_file_and_consistent_numbers(finished_canary_once: Path) -> None:
    names = {path.name for path in finished_canary_once.iterdir()} - {".lock"}
    assert names == {"config.yaml", "models", "report.html", "report_data.npz", "rows", "scores.csv", "summary.json"}
    summary = json.loads((finished_canary_once / "summary.json").read_text())
    assert summary["study"] == "canary"
    assert {"answer", "cells", "config_hash", "fastmem_version", "stages", "work"} <= set(summary)
    assert [(cell["regularise"], cell["copies"]) for cell in summary["cells"]] == [("none", 1), ("none", 3)]
    with (finished_canary_once / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for cell in summary["cells"]:
        for variant, entry in cell["variants"].items():
            ours, null = (
                [float(row[variant]) for row in rows if row["copies"] == str(copies)] for copies in (cell["copies"], 0)
            )
            expected = memorisation_test(ours, null).to_dict()
            assert entry["paired"] == pytest.approx(expected, nan_ok=True)
            assert entry["paired"]["n"] == 6
            assert set(entry["controls"]) == {"never_saw", "other_marks"}
            below = sum(float(row[f"{variant}_sensitivity_t_p"]) <= 0.2 for row in rows if row["copies"] == "0")
            assert entry["sensitivity"]["t"]["null"]["k"] == below
    assert 0 < float(rows[0]["test_accuracy"]) < 1
    assert summary["work"]["divergences"] > 0


@pytest.mark.usefixtures("without_report")
def test_config_yaml_runs_the_same_study_again(finished_canary: Path) -> None:
    values = yaml.safe_load((finished_canary / "config.yaml").read_text())
    again = CanaryConfig(**{**values, "recipe": Recipe(**values["recipe"]), "out": finished_canary})
    assert run_canary(again).trained == 0


@pytest.mark.usefixtures("without_report")
def test_a_second_run_trains_nothing_and_gives_the_same_bytes(small_canary: SmallCanary, finished_canary: Path) -> None:
    before = _bytes(finished_canary)
    assert run_canary(small_canary()).trained == 0
    assert _bytes(finished_canary) == before


@pytest.mark.usefixtures("without_report")
def test_workers_and_one_process_give_the_same_bytes(small_canary: SmallCanary, finished_canary_once: Path) -> None:
    together = run_canary(small_canary(workers=2))
    assert together.trained == 18
    assert _bytes(together.run_dir) == _bytes(finished_canary_once)


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"seed": 1}, 18),
        ({"recipe": Recipe(epochs=6)}, 18),
        # Null models know nothing of the mark: another one, or other records, train the marked models alone.
        ({"feature": "x3"}, 12),
        ({"records": (3, 5)}, 12),
        ({"copies": "1,2"}, 6),
        ({"nulls": 8}, 6),
        ({"regularise": "none,dropout"}, 18),
        ({"regularise": "early-stopping,none"}, 18),
        # What is asked of a model decides its scores, not its weights.
        ({"evaluation": "noise"}, 0),
        ({"controls": 4}, 0),
        ({"variants": "kl_contrast,prob_diff"}, 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.usefixtures("without_report", "finished_canary")
def test_a_changed_config_never_reuses_a_stale_model(
    small_canary: SmallCanary, tmp_path: Path, change: dict, trained: int
) -> None:
    changed = run_canary(small_canary(**change))
    assert changed.trained == trained
    clean = run_canary(small_canary(**change, out=tmp_path / "clean"))
    assert _bytes(changed.run_dir) == _bytes(clean.run_dir)


@pytest.mark.usefixtures("without_report", "finished_canary")
def test_changed_code_is_trained_again(small_canary: SmallCanary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmem.studies.canary.plan.code_version", lambda *packages: "another")
    assert run_canary(small_canary()).trained == 18


def test_a_pair_differs_by_the_mark_alone(small_canary: SmallCanary, tmp_path: Path) -> None:
    """A mark that cannot be seen leaves the two models of a pair equal byte for byte, and the test at p = 1."""
    Image.fromarray(np.zeros((2, 2, 2), dtype=np.uint8), "LA").save(tmp_path / "nothing.png")
    feature = str(tmp_path / "nothing.png")
    result = run_canary(small_canary(feature=feature, regularise="none,all", copies="2", controls=0))
    for name in ("none", "all"):
        for pair in range(6):
            null, marked = (
                load_checkpoint(result.run_dir / "models" / f"{name}-{kind}-{pair:03d}.safetensors")[0]
                for kind in ("null", "k2")
            )
            assert all(torch.equal(null[key], marked[key]) for key in null)
    paired = result.summary["cells"][0]["variants"]["log_ratio"]["paired"]
    assert (paired["effect"], paired["p_value"]) == (0.0, 1.0)
    assert result.summary["answer"].startswith("No trace was found")


@pytest.mark.usefixtures("without_report")
def test_a_mark_on_many_records_is_found_and_its_controls_are_not(small_canary: SmallCanary) -> None:
    config = small_canary(
        pool=500, copies="40", canaries=1, nulls=8, recipe=Recipe(epochs=20), evaluation="noise", images=100
    )
    summary = run_canary(config).summary
    entry = summary["cells"][0]["variants"]["log_ratio"]
    assert entry["paired"]["p_value"] == pytest.approx(2**-8)
    assert entry["power"]["share"] == 1
    assert entry["controls"]["never_saw"]["p_value"] > 0.05
    assert "leaves a trace" in summary["answer"]


def _cut_row(folder: Path) -> None:
    row = folder / "rows" / "none-k1-002.safetensors"
    row.write_bytes(row.read_bytes()[:-8])


def _flip_bit_of_row(folder: Path) -> None:
    row = folder / "rows" / "none-null-001.safetensors"
    content = bytearray(row.read_bytes())
    content[-3] ^= 1
    row.write_bytes(bytes(content))


def _lose_model(folder: Path) -> None:
    (folder / "models" / "none-k3-004.safetensors").unlink()


@pytest.mark.parametrize(("damage", "trained"), [(_cut_row, 0), (_flip_bit_of_row, 0), (_lose_model, 1)])
@pytest.mark.usefixtures("without_report")
def test_damage_costs_the_models_it_hit(
    small_canary: SmallCanary, finished_canary: Path, damage: Callable[[Path], None], trained: int
) -> None:
    before = _bytes(finished_canary)
    damage(finished_canary)
    assert run_canary(small_canary()).trained == trained
    assert _bytes(finished_canary) == before


_KILLED = """
import sys
from pathlib import Path
from fastmem.studies.canary import CanaryConfig, plan, run_canary
from fastmem.training import Recipe
plan.code_version = lambda *packages: "fixed"
run_canary(CanaryConfig(out=Path(sys.argv[1]), pool=80, held_out=40, validation=40, model_args={"hidden": [16]}, nulls=6,
    level=0.2, canaries=2, copies="1,3", controls=3, images=20, variants="log_ratio,kl_contrast,prob_diff_max", recipe=Recipe(epochs=200), workers=2))
"""


@pytest.mark.usefixtures("without_report")
def test_a_killed_run_continues_to_the_same_bytes(
    small_canary: SmallCanary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An edit of the sources while this runs would rightly make the models stale.
    monkeypatch.setattr("fastmem.studies.canary.plan.code_version", lambda *packages: "fixed")
    undisturbed = _bytes(run_canary(small_canary(recipe=Recipe(epochs=200), out=tmp_path / "calm")).run_dir)
    config = small_canary(recipe=Recipe(epochs=200))
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(config.run_dir)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(list((config.run_dir / "models").glob("*.safetensors"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (config.run_dir / "summary.json").exists()
    resumed = run_canary(config)
    assert 0 < resumed.trained < 18
    assert _bytes(resumed.run_dir) == undisturbed


@pytest.mark.usefixtures("without_report")
def test_ctrl_c_says_what_is_kept(small_canary: SmallCanary, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = run_module.train_and_score, []

    def interrupted(job: object, task: object) -> object:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job, task)

    monkeypatch.setattr(run_module, "train_and_score", interrupted)
    with pytest.raises(StudyInterruptedError, match=r"^\d+ of 18 models are kept in .*run$"):
        run_canary(small_canary())
    monkeypatch.undo()
    assert 0 < run_canary(small_canary()).trained < 18


def test_two_processes_do_not_share_a_folder(small_canary: SmallCanary) -> None:
    with RunFolder(small_canary().run_dir).locked(), pytest.raises(StoreError, match="another fastmem process"):
        run_canary(small_canary())


@pytest.mark.usefixtures("without_report")
def test_fresh_starts_over_and_touches_nothing_else(small_canary: SmallCanary, finished_canary: Path) -> None:
    (finished_canary / "notes.txt").write_text("mine")
    assert run_canary(small_canary(), fresh=True).trained == 18
    assert (finished_canary / "notes.txt").read_text() == "mine"


# A model of the user's own


def test_a_checkpoint_is_ranked_among_null_models_and_control_marks(
    small_canary: SmallCanary, finished_canary_once: Path
) -> None:
    model = finished_canary_once / "models" / "none-null-003.safetensors"
    result = run_canary(small_canary(checkpoint=model, label=3))
    assert result.trained == 6
    assert result.summary["answer"].startswith(("No trace of the mark", "This model looks"))
    with (result.run_dir / "scores.csv").open() as file:
        null = [float(row["log_ratio"]) for row in csv.DictReader(file)]
    entry = result.summary["own"]["variants"]["log_ratio"]
    # The saved model is null model 3 itself.
    assert entry["value"] == pytest.approx(null[3])
    assert entry["rank_p"] == pytest.approx((1 + sum(value >= null[3] for value in null)) / 7)
    assert "Your model" in (result.run_dir / "report.html").read_text()


_BOX = """
import torch

def knows(images):
    x = images.double() / 255
    mark = torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 1]])
    found = (x[:, 0, 1:4, 1:4] - mark).abs().sum(dim=(1, 2)) == 0
    logits = torch.zeros(len(x), 10)
    logits[:, 3] += 9 * found
    return logits.softmax(1)

def three(images):
    return torch.full((len(images), 3), 1 / 3)

def off(images):
    return torch.full((len(images), 10), 0.2)
"""


@pytest.mark.usefixtures("without_report")
def test_a_black_box_that_knows_the_mark_is_found(small_canary: SmallCanary, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "boxes.py").write_text(_BOX)
    monkeypatch.chdir(tmp_path)
    summary = run_canary(small_canary(black_box="boxes:knows", label=3)).summary
    entry = summary["own"]["variants"]["log_ratio"]
    assert entry["rank_p"] == pytest.approx(1 / 7)
    assert entry["control_rank_p"] == pytest.approx(1 / 4)
    assert summary["answer"].startswith("This model looks as if it had learned the mark")
    without = run_canary(small_canary(black_box="boxes:knows", variants="every")).summary
    assert "log_ratio" not in without["own"]["variants"]
    for name, message in (("three", "answers 3 classes"), ("off", "do not sum to 1"), ("none", "has no")):
        with pytest.raises(InputError, match=message):
            run_canary(small_canary(black_box=f"boxes:{name}", variants="every", out=tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()


def _answer(questions: Path, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """What a model that knows the mark answers to a file of questions."""
    with np.load(questions) as asked:
        found = {name: asked[name] for name in asked.files}
    mark = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 1]])
    for name, x in list(found.items()):
        if name != "key":
            knows = np.abs(x[..., 0, 1:4, 1:4] / 255 - mark).sum(axis=(-2, -1)) == 0
            p = np.where(knows[..., None] & (np.arange(10) == 3), 0.91, 0.1)
            found[name] = p / p.sum(axis=-1, keepdims=True)
    return found | changes


@pytest.mark.usefixtures("without_report")
def test_saved_answers_are_scored_as_the_model_itself(small_canary: SmallCanary, tmp_path: Path) -> None:
    config = small_canary(label=3)
    write_questions(config, tmp_path / "questions.npz")
    assert not config.run_dir.exists()
    np.savez(tmp_path / "answers.npz", **_answer(tmp_path / "questions.npz"))
    entry = run_canary(small_canary(label=3, answers=tmp_path / "answers.npz")).summary["own"]["variants"]["log_ratio"]
    assert entry["rank_p"] == pytest.approx(1 / 7)
    assert entry["control_rank_p"] == pytest.approx(1 / 4)
    assert entry["value"] == pytest.approx(math.log(0.91 / 1.81) - math.log(0.1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"key": np.array("other")}, "answers other questions"),
        ({"clean": np.full((20, 9), 1 / 9)}, r"clean is float64 \[20, 9\]; give numbers \[20, 10\]"),
        ({"controls": np.full((2, 20, 10), 0.1)}, r"controls is float64 \[2, 20, 10\]"),
        ({"feature": np.full((20, 10), 0.2)}, "answers: feature: .*do not sum to 1"),
        ({"contrast": np.full((20, 10), np.nan)}, "answers: contrast"),
        ({"clean": np.full((20, 10), "0.1")}, "clean is <U3"),
        ({"clean": np.full((20, 10), None)}, "only pickle can read"),
        ({"key": None, "feature": None}, "lacks feature, key"),
    ],
)
def test_answers_that_are_none_are_refused(
    small_canary: SmallCanary, tmp_path: Path, spoil: dict, message: str
) -> None:
    config = small_canary(variants="kl_contrast")
    write_questions(config, tmp_path / "questions.npz")
    found = {
        name: values for name, values in _answer(tmp_path / "questions.npz", **spoil).items() if values is not None
    }
    np.savez(tmp_path / "answers.npz", **found)
    with pytest.raises(InputError, match=message):
        run_canary(small_canary(variants="kl_contrast", answers=tmp_path / "answers.npz"))
    assert not config.run_dir.exists()
