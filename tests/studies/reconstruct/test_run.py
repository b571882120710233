"""The reconstruction study from the config to its files: results, resume, models of a user's own, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmem.cli import main
from fastmem.errors import InputError, UnknownNameError
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.reconstruct import (
    ReconstructConfig,
    run_reconstruct,
)
from fastmem.studies.reconstruct.evaluate import agreement, blind_order, oracle_order
from fastmem.studies.reconstruct.plan import make_plan
from fastmem.training import save_checkpoint

Make = Callable[..., ReconstructConfig]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_files_of_a_run(once: Path) -> None:
    summary = summary_of(once)
    assert summary["study"] == "reconstruct"
    assert {"attack", "match", "train"} <= set(summary["stages"])
    names = {path.name for path in once.iterdir()}
    assert {"summary.json", "scores.csv", "report.html", "config.yaml", "candidates.npz", "candidates"} <= names
    assert {path.name for path in (once / "models").iterdir()} == {"victim-0.safetensors", "victim-1.safetensors"}
    assert not list(once.rglob("*.state.safetensors"))
    with np.load(once / "candidates.npz", allow_pickle=False) as stored:
        assert stored["victim-0__x"].shape == (1, 8, 1, 8, 8)
        assert stored["victim-1__labels"].tolist() == [[-1] * 4 + [1] * 4]
    rows = (once / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 4
    assert (once / "candidates" / "victim-1.png").read_bytes()[:4] == b"\x89PNG"


def test_counts_stand_beside_every_control(once: Path) -> None:
    summary = summary_of(once)
    total = summary["total"]
    assert set(total["controls"]) == {"first_layer", "first_layer_all", "untrained", "random", "mean"}
    assert total["attack"]["mean"]["n"] == 2
    assert total["attack"]["mean"]["low"] < total["attack"]["mean"]["value"] < total["attack"]["mean"]["high"]
    assert total["controls"]["mean"]["mean"]["value"] == 0  # the mean image correlates with nothing
    excess = total["excess"]["random"]["mean"]["value"]
    difference = total["attack"]["mean"]["value"] - total["controls"]["random"]["mean"]["value"]
    assert excess == pytest.approx(difference)
    for victim in summary["victims"]:
        assert 0 < victim["p_held_out"] <= 1
        assert victim["held_out"]["images"] == 40
        assert victim["training"]["fitted"] == 1
    assert "first-layer rows" in summary["answer"]


def test_victims_are_balanced_and_share_nothing_with_their_null(small: Make) -> None:
    plan = make_plan(small(n=6, held_out=100))
    for victim in plan.victims:
        labels = plan.labels[torch.from_numpy(victim.records)]
        assert labels.sum() == 0
        assert not np.intersect1d(victim.records, victim.held_out).size
    assert set(plan.victims[0].records) != set(plan.victims[1].records)
    parity = plan.dataset.y % 2 == 1
    assert bool(((plan.labels == 1) == parity).all())


@pytest.mark.usefixtures("without_report")
def test_a_second_call_computes_nothing_and_another_config_replaces(finished: Path, small: Make) -> None:
    first = summary_of(finished)
    again = run_reconstruct(small())
    assert again.iterations == 0
    assert again.summary["total"] == first["total"]
    other = run_reconstruct(small(iterations=30))
    assert other.iterations == 2 * 30
    assert {path.name for path in (finished / "models").iterdir()} == {"victim-0.safetensors", "victim-1.safetensors"}


@pytest.mark.usefixtures("without_report")
def test_a_run_goes_on_after_ctrl_c_with_the_same_result(
    once: Path, small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastmem.studies.reconstruct import run as module

    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    saved = []
    real = module.save_state

    def save_then_stop(folder: Path, part: object, state: object) -> None:
        real(folder, part, state)
        saved.append(state.iteration)
        if state.iteration >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_state", save_then_stop)
    with pytest.raises(StudyInterruptedError, match="kept"):
        run_reconstruct(small())
    monkeypatch.setattr(module, "save_state", real)
    resumed = run_reconstruct(small())
    assert resumed.iterations == 2 * 60 - saved[-1]
    assert resumed.summary["total"] == summary_of(once)["total"]


@pytest.mark.usefixtures("without_report")
def test_damaged_files_are_made_again(finished: Path, small: Make) -> None:
    (finished / "models" / "victim-0.safetensors").write_bytes(b"no tensors")
    result = run_reconstruct(small())
    # The same seed trains the same victim, so the attack on it still stands.
    assert result.iterations == 0
    (finished / "runs" / "victim-1-part-0.safetensors").unlink()
    assert run_reconstruct(small()).iterations == 60


@pytest.mark.usefixtures("without_report")
def test_many_settings_are_ranked_without_the_training_set(small: Make) -> None:
    result = run_reconstruct(small(victims=1, sweep=4, iterations=40))
    (victim,) = result.summary["victims"]
    assert len(victim["runs"]) == 4
    alive = [at for at, run in enumerate(victim["runs"]) if run["diverged"] is None]
    assert victim["shown"] == min(alive, key=lambda at: victim["runs"][at]["residual"])
    assert victim["union"]["mean"] >= max(run["oracle_mean"] for run in victim["runs"]) - 1e-9
    oracle = run_reconstruct(small(victims=1, sweep=4, iterations=40, rank="oracle"))
    (chosen,) = oracle.summary["victims"]
    assert oracle.iterations == 0
    assert chosen["shown"] == chosen["oracle"]
    assert any("oracle" in warning for warning in oracle.summary["warnings"])


@pytest.mark.usefixtures("without_report")
def test_unknown_balance_is_searched(small: Make) -> None:
    result = run_reconstruct(small(victims=1, balance="search", m=10, iterations=20))
    with np.load(result.run_dir / "candidates.npz") as stored:
        positives = (stored["victim-0__labels"] == 1).sum(1).tolist()
    assert positives == [3, 5, 7]


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "changes",
    [
        {"task": "multiclass", "n": 10},
        {"task": "regression", "preset": "regression"},
        {"weight_decay": 0.01},
        {"from_initial": True, "preset": "ntk"},
        {"precision": "float64"},
        {"precision": "compensated"},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_variants(small: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]) -> None:
    monkeypatch.setattr("fastmem.studies.reconstruct.plan._PLAIN_EPOCHS", 400)
    result = run_reconstruct(small(victims=1, iterations=10, **changes))
    assert result.summary["victims"][0]["diverged"] == 0
    assert np.isfinite(result.summary["total"]["attack"]["mean"]["value"])


def own_checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A victim of the study serves as the user's model."""
    target = tmp_path / "mine.safetensors"
    target.write_bytes((finished / "models" / "victim-0.safetensors").read_bytes())
    return target


@pytest.mark.usefixtures("without_report")
def test_a_model_of_the_user_s_own_with_and_without_its_training_set(
    finished: Path, small: Make, tmp_path: Path
) -> None:
    plan = make_plan(small())
    path = own_checkpoint(finished, tmp_path)
    options = {"victims": 1, "checkpoint": path, "out": tmp_path / "own"}
    blind = run_reconstruct(small(**options))
    assert blind.summary["total"] is None
    assert "nobody can say" in blind.summary["answer"]
    assert (blind.run_dir / "scores.csv").read_text().startswith("victim,candidate,label,multiplier,agreement,output")
    members = tmp_path / "members.npy"
    np.save(members, plan.victims[0].records)
    counted = run_reconstruct(small(members=members, **options))
    assert counted.iterations == 0 or counted.summary["total"] is not None
    assert counted.summary["total"]["attack"]["mean"]["value"] == pytest.approx(
        summary_of(finished)["victims"][0]["attack"]["mean"], abs=0.2
    )
    assert "untrained" not in counted.summary["total"]["controls"]


def test_what_is_refused(finished: Path, small: Make, tmp_path: Path) -> None:
    path = own_checkpoint(finished, tmp_path)
    own = {"victims": 1, "checkpoint": path}
    with pytest.raises(InputError, match="does not fit"):
        make_plan(small(**own, hidden=(61, 60)))
    broken = tmp_path / "nan.safetensors"
    model = make_plan(small()).network(make_plan(small()).victims[0])
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    save_checkpoint(broken, model.state_dict())
    with pytest.raises(InputError, match="not finite"):
        make_plan(small(victims=1, checkpoint=broken))
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    with pytest.raises(InputError, match="no whole safetensors file"):
        make_plan(small(victims=1, checkpoint=text))
    with pytest.raises(InputError, match="no file"):
        make_plan(small(victims=1, checkpoint=tmp_path / "absent"))
    numbers = tmp_path / "numbers.npy"
    np.save(numbers, np.array([0, 0]))
    with pytest.raises(InputError, match="twice"):
        make_plan(small(**own, members=numbers))
    with pytest.raises(InputError, match="classes"):
        make_plan(small(positive=(0, 99)))
    with pytest.raises(InputError, match="give less"):
        make_plan(small(n=100_000))
    with pytest.raises(InputError, match="no TF32"):
        make_plan(small(precision="tf32x3"))
    for changes, words in (
        ({"m": 0}, "at least 1"),
        ({"members": numbers}, "without a checkpoint"),
        ({**own, "rank": "oracle"}, "without the training set"),
        ({"checkpoint": path, "victims": 2}, "beside a checkpoint"),
        ({"sweep": 2, "restarts": 2}, "beside restarts"),
        ({"hidden": ()}, "width"),
    ):
        with pytest.raises(InputError, match=words):
            small(**changes)
    with pytest.raises(UnknownNameError):
        small(preset="mnist")


def test_blind_and_oracle_orders() -> None:
    from fastmem.attacks.reconstruct import ReconstructSettings, Run

    generator = torch.Generator().manual_seed(0)
    train = torch.randn(3, 20, generator=generator)
    noise = torch.randn(3, 20, generator=generator)

    def run(x: torch.Tensor, loss: float, diverged: int | None = None) -> Run:
        residuals = np.array([[loss]])
        return Run(ReconstructSettings(), x, torch.ones(3), np.array([0]), residuals, diverged, torch.ones(3))

    runs = [run(train + 0.01 * noise, 5.0), run(noise, 1.0), run(train, 0.1, diverged=3), run(train.flip(0), 6.0)]
    assert blind_order(runs) == [1, 0, 3, 2]
    assert oracle_order(runs, train)[-1] == 1
    shares = agreement(runs)
    assert shares[0].tolist() == pytest.approx([2 / 3] * 3)
    assert shares[1].tolist() == [0, 0, 0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reconstruct", "--n", "4", "--hidden", "[40]", "--iterations", "20", "--held-out", "20"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Mean image" in said
    assert "correlation above 0.8" in said
    assert main(["report", str(tmp_path / "run")]) == 0
    assert main(["reconstruct", "--m", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["reconstruct", "--print-config"]) == 0
    assert "preset: fast" in capsys.readouterr().out
