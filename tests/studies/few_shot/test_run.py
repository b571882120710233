"""A few-shot study end to end: files, resume, changed configs, text, saved features, and one line for every mistake."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastmem.cli import main
from fastmem.errors import StoreError
from fastmem.signals import Signals
from fastmem.studies.few_shot import FewShotConfig, run_few_shot
from fastmem.studies.few_shot.slices import score_slice
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.training import Recipe

SMALL: dict[str, Any] = {
    "pool": 120,
    "population": 40,
    "bystanders": 60,
    "model_args": {"hidden": [8]},
    "num_models": 8,
    "recipe": Recipe(epochs=4),
    "variants": "simpleshot,tim",
    "shots": "1,3",
    "n_val": 4,
    "n_query": 5,
    "episodes": 6,
    "workers": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_few_shot(FewShotConfig(out=tmp_path_factory.mktemp("few") / "run", **SMALL)).run_dir


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes as long as all the rest."""
    monkeypatch.setattr("fastmem.studies.few_shot.run.write_few_shot_report", lambda folder: None)


def _models(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "models").glob("*.safetensors")}


def test_a_run_leaves_every_file_and_consistent_numbers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["study"] == "few-shot"
    assert list(summary["variants"]) == ["simpleshot", "tim"]
    for variant in summary["variants"].values():
        assert list(variant["shots"]) == ["1", "3"]
        assert set(variant["controls"]) == {"blind", "shuffled", "random"}
        for shots, table in variant["shots"].items():
            assert table["n_labels"] == 2 * (int(shots) + 4)
            assert table["episodes"] == 6
            assert set(table["held_out"]) == {"strict", "regular"}
        assert "white box" in variant["access"]
    assert summary["variants"]["tim"]["alone"]["shots"] == 3
    assert {"loss", "max_prob", "lira_online_fixed"} <= set(summary["baselines"])
    assert summary["baselines"]["lira_online_fixed"]["shadow_models"] == 7
    assert {"few_shot_simpleshot", "few_shot_tim", "loss"} <= set(summary["attacks"])
    assert {"strict", "regular"} == set(summary["attacks"]["loss"]["log_mia"])
    with (finished / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 120
    pool = Signals.open(finished / "signals.zarr")
    assert pool.keep.shape == (8, 120)
    assert len(_models(finished)) == 9
    page = (finished / "report.html").read_text()
    for anchor in ("episodes", "shots", "cost", "controls", "held-out", "alone", "pool"):
        assert f'id="{anchor}"' in page


@pytest.mark.usefixtures("without_report")
def test_a_second_run_trains_nothing_and_changed_questions_train_nothing(finished: Path) -> None:
    before, summary = _models(finished), json.loads((finished / "summary.json").read_text())
    again = run_few_shot(FewShotConfig(out=finished, **SMALL))
    assert again.trained == 0
    assert (
        again.summary["variants"]["simpleshot"]["shots"]["3"]["auc"]
        == summary["variants"]["simpleshot"]["shots"]["3"]["auc"]
    )
    other = run_few_shot(FewShotConfig(out=finished, **{**SMALL, "features": "logits", "variants": "simpleshot"}))
    assert other.trained == 0
    assert other.summary["design"]["feature_width"] == 10
    assert "black box" in other.summary["variants"]["simpleshot"]["access"]
    (finished / "models" / "pool-0001.safetensors").write_bytes(b"cut")
    answers = finished / "answers" / "pool-0002.safetensors"
    answers.write_bytes(answers.read_bytes()[:-4])
    mended = run_few_shot(FewShotConfig(out=finished, **SMALL))
    assert mended.trained == 1
    assert _models(finished) == before
    values = yaml.safe_load((finished / "config.yaml").read_text())
    assert values["shots"] == "1,3"


def test_two_processes_do_not_share_a_folder(finished: Path) -> None:
    from fastmem.engine import RunFolder

    with RunFolder(finished).locked(), pytest.raises(StoreError, match="another fastmem process"):
        run_few_shot(FewShotConfig(out=finished, **SMALL))


@pytest.mark.usefixtures("without_report")
def test_saved_features_need_no_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = np.arange(120) < 60
    features = rng.normal(size=(120, 4)) + 2.0 * members[:, None]
    np.savez(tmp_path / "saved.npz", features=features, members=members, blind=rng.normal(size=(120, 4)))
    config = FewShotConfig(
        features=str(tmp_path / "saved.npz"),
        shots=5,
        n_val=5,
        n_query=5,
        episodes=10,
        variants="simpleshot",
        out=tmp_path / "run",
        workers=1,
    )
    result = run_few_shot(config)
    table = result.summary["variants"]["simpleshot"]
    assert result.trained == 0
    assert table["shots"]["5"]["auc"]["mean"] > 0.9
    assert abs(table["controls"]["blind"]["5"]["auc"]["mean"] - 0.5) < 0.25
    assert "leaks" in result.summary["answer"]


@pytest.mark.usefixtures("without_report")
def test_a_network_can_be_fine_tuned_whole(tmp_path: Path) -> None:
    config = FewShotConfig(
        out=tmp_path / "run",
        **{**SMALL, "num_models": 1, "variants": "finetune", "shots": 2, "finetune_episodes": 2},
    )
    entry = run_few_shot(config).summary["variants"]["finetune"]
    assert entry["access"].startswith("white box")
    assert entry["shots"]["2"]["episodes"] == 2
    assert set(entry["controls"]) == {"blind", "shuffled"}


@pytest.mark.usefixtures("without_report")
def test_fine_tuning_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"num_models": 2, "targets": 2, "variants": "finetune", "shots": "1", "finetune_episodes": 44}
    of = {name: FewShotConfig(out=tmp_path / name, **{**SMALL, **few}) for name in ("whole", "broken")}
    expected = _tables(run_few_shot(of["whole"]).summary)
    done: list[str] = []

    def counted(job: Any, task: Any, *rest: Any) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        score_slice(job, task, *rest)
        done.append(f"{task.group}/{task.rows[0]}")

    monkeypatch.setattr("fastmem.studies.few_shot.cells.score_slice", counted)
    with pytest.raises(StudyInterruptedError, match="finished episodes"):
        run_few_shot(of["broken"])
    slices = tmp_path / "broken" / "episodes"
    assert len(list(slices.iterdir())) == 5
    # A damaged file is no slice, and one that belongs to nothing is removed.
    damaged, stray = min(slices.iterdir()), slices / "target-finetune-9-00000.safetensors"
    stray.write_bytes(damaged.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    done.append("room for the rest")
    assert _tables(run_few_shot(of["broken"]).summary) == expected
    assert len(done) - 6 == 12 - 4  # 3 subjects, 2 targets of 22 episodes, 20 a slice
    assert not stray.exists()
    done[5:] = ["again"]
    assert _tables(run_few_shot(of["broken"]).summary) == expected
    assert done[5:] == ["again"]
    # Other questions are other slices.
    run_few_shot(FewShotConfig(out=tmp_path / "broken", **{**SMALL, **few, "n_query": 4}))
    assert len(done[6:]) == 12


def _tables(summary: Any) -> Any:
    """What fine-tuning found, without the time that it took."""
    if isinstance(summary, dict):
        return {key: _tables(value) for key, value in summary.get("variants", summary).items() if key != "seconds"}
    return summary


@pytest.mark.usefixtures("without_report")
def test_text_is_cut_into_blocks_and_attacked(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra lm is not installed")
    pytest.importorskip("fastmem.models.language")
    try:
        from fastmem.compat import import_transformers

        import_transformers()
    except ImportError as error:
        pytest.skip(f"transformers does not import: {error}")
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(50)]
    (tmp_path / "own.txt").write_text(" ".join(rng.choice(words, 4000)))
    arguments = f"few-shot --task text --text {tmp_path / 'own.txt'} --out {tmp_path / 'run'} --workers 1 --pool 60 "
    arguments += "--population 20 --bystanders 30 --language.layers 1 --language.width 16 --language.heads 2 "
    arguments += "--language.block 16 --language.vocabulary 300 --text-recipe.epochs 2 --shots 2 --n-val 3 --n-query 4 "
    arguments += "--episodes 4 --variants simpleshot,laplacian,finetune_head,finetune --finetune-episodes 2"
    assert _fastmem(*arguments.split())[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"loss", "min_k", "zlib"} == set(summary["baselines"])
    (remark,) = [warning for warning in summary["warnings"] if "left out" in warning]
    assert "a single model was trained" in remark
    assert summary["design"]["features"] == "statistics"
    assert "black box" in summary["variants"]["laplacian"]["access"]
    whole = summary["variants"]["finetune"]
    assert whole["shots"]["2"]["episodes"] == 2
    assert set(whole["controls"]) == {"blind", "shuffled"}
    assert len(_models(tmp_path / "run")) == 2  # the target and the blind model
    code, _, error = _fastmem(*arguments.split(), "--features", "hidden")
    assert code == 2
    assert "network.transformer.h.0" in error


def _fastmem(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shots 600", "shots: 600 shots"),
        ("--pool 60 --shots 10", "shots: 10 shots"),
        ("--shots one", "whole numbers from 1"),
        ("--shots 0", "whole numbers from 1"),
        ("--features conv9", "accepted: layers"),
        ("--variants simpelshot", "did you mean 'simpleshot'"),
        ("--variants ,", "none given"),
        ("--task txt", "did you mean 'text'"),
        ("--task text", "--text FILE"),
        ("--task text --text missing.txt", "cannot read"),
        ("--task text --text short.txt", "a block takes 128"),
        ("--task text --text latin.txt", "no UTF-8 text"),
        ("--features few.npz --variants finetune", "take finetune_head"),
        ("--text short.txt", "--task text"),
        ("--features constant.npz", "same values"),
        ("--features nan.npz", "NaN"),
        ("--features one_class.npz", "no non-members"),
        ("--features few.npz --shots 5", "there are 10"),
        ("--features other.npz", "it needs features"),
        ("--num-models 3", "an even number"),
        ("--targets 40", "16 models"),
        ("--episodes 1", "at least 2"),
        ("--engine slurm", "engine"),
        ("--fresh --resume", "--resume"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short")
    Path("latin.txt").write_bytes(b"caf\xe9 " * 100)
    members = np.arange(100) < 50
    normal = np.random.default_rng(0).normal(size=(100, 3))
    np.savez("constant.npz", features=np.ones((100, 3)), members=members)
    np.savez("nan.npz", features=np.where(normal > 2, np.nan, normal), members=members)
    np.savez("one_class.npz", features=normal, members=np.ones(100, dtype=bool))
    np.savez("few.npz", features=normal, members=np.arange(100) < 10)
    np.savez("other.npz", x=normal)
    before = sorted(Path().iterdir())
    code, _, error = _fastmem("few-shot", *arguments.split(), "--workers", "1")
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert message in error
    assert sorted(Path().iterdir()) == before
