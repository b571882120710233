"""A rewinding study runs end to end, continues after any loss with the same bytes, and never reuses what is stale."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fastmem.defenses import eligible_weights
from fastmem.errors import InputError
from fastmem.models import build_model
from fastmem.signals import Signals
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.rewind import RewindConfig, run_rewind
from fastmem.studies.rewind import run as run_module
from fastmem.studies.rewind import task as task_module
from fastmem.studies.rewind.plan import make_plan, with_alpha
from fastmem.studies.rewind.task import initial_state, trained_state
from fastmem.training import Recipe

SmallRewind = Callable[..., RewindConfig]

ARMS = [
    "none",
    "early_stopping",
    "relaxloss",
    "tune",
    "tune_only",
    "cwrf_0.01",
    "cwrf_0.05",
    "zero_tune_0.05",
    "rewind_tune_0.05",
    "rewind_only_0.05",
    "random_0.05",
    "tfo_0.05",
    "weight_0.05",
    "past_0.05",
    "kl_only_0.05",
]


def _bytes(folder: Path) -> dict[str, bytes]:
    files = [folder / "scores.csv", folder / "report_data.npz", *sorted((folder / "models").rglob("*.safetensors"))]
    files += sorted((folder / "entanglement").iterdir())
    files += sorted(path for path in (folder / "signals.zarr").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_leaves_every_file_and_consistent_numbers(rewind_once: Path) -> None:
    names = {path.name for path in rewind_once.iterdir()} - {".lock"}
    outputs = {"config.yaml", "report.html", "report_data.npz", "scores.csv", "summary.json"}
    assert names == outputs | {"entanglement", "models", "signals.zarr"}
    summary = _summary(rewind_once)
    assert list(summary["arms"]) == ARMS
    for key, arm in summary["arms"].items():
        for attack in arm["attacks"].values():
            assert attack["auc_low"] <= attack["auc"] <= attack["auc_high"]
            assert "shuffled" in attack["controls"]
        logits = Signals.open(rewind_once / "signals.zarr", key).logits
        assert logits is not None
        labels = Signals.open(rewind_once / "signals.zarr", key).labels
        right = (logits[:, 80:, 0].argmax(-1) == labels[80:]).mean()
        assert arm["test_accuracy"]["mean"] == pytest.approx(right)
    assert summary["attacks"] == summary["arms"]["none"]["attacks"]
    assert summary["arms"]["tune_only"]["loss"] == "relaxloss"
    assert summary["config"]["relax_alpha"] > 0
    random = summary["entanglement"]["pairs"]["random/tfo"]["all"]
    assert (
        abs(random["spearman"]["mean"]) < 0.2 < summary["entanglement"]["pairs"]["pve/tfo"]["all"]["spearman"]["mean"]
    )
    assert {claim["figure"] for claim in summary["ordering"]} == {"auc", "acc"}
    with (rewind_once / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 80


def test_sets_are_disjoint_and_shadow_models_are_adaptive(small_rewind: SmallRewind) -> None:
    plan = make_plan(small_rewind())
    everyone = np.concatenate(list(plan.index.values()))
    assert len(np.unique(everyone)) == len(everyone) == 80 + 30 + 20 + 60
    plan = with_alpha(plan, 0.37219)
    assert plan.config.relax_alpha == 0.37
    # Every model has a row of its own in every arm, and no model trained on test records.
    assert {len(set(keys)) for keys in plan.job.arm_keys.values()} == {6}
    assert not plan.job.keep[:, 80:].any()
    assert (plan.job.keep[:, :80].sum(axis=0) == 3).all()


def test_the_initial_weights_are_those_that_training_began_with(small_rewind: SmallRewind, rewind_once: Path) -> None:
    """A training of one step at rate 0 leaves exactly what rewinding goes back to."""
    still = Recipe(epochs=1, learning_rate=0.0, batch_size=64)
    plan = make_plan(small_rewind(recipe=still))
    for row, state in enumerate(task_module.train_states(plan.job, still, (0, 1))):
        first = initial_state(plan.job, row)
        assert all(torch.equal(first[name], state[name]) for name in state)


def test_rows_of_an_arm_are_those_of_networks_whose_frozen_weights_are_the_initial_ones(
    small_rewind: SmallRewind, finished_rewind: Path
) -> None:
    plan = with_alpha(make_plan(small_rewind()), _summary(finished_rewind)["config"]["relax_alpha"])
    model = task_module._Model(plan.job, 2)
    arm = next(arm for arm in plan.job.arms if arm.key == "cwrf_0.05")
    network, first, last = model.under(arm), initial_state(plan.job, 2), trained_state(plan.job, "none", 2)
    names = list(eligible_weights(network))
    back = sum(int((network.state_dict()[name] == first[name]).sum()) for name in names)
    total = sum(first[name].numel() for name in names)
    assert int(0.05 * total) <= back < 2 * int(0.05 * total)
    assert sum(int((last[name] == first[name]).sum()) for name in names) < back


@pytest.mark.usefixtures("without_report")
def test_config_yaml_runs_the_same_study_again(finished_rewind: Path) -> None:
    before = _bytes(finished_rewind)
    values = yaml.safe_load((finished_rewind / "config.yaml").read_text())
    again = RewindConfig(**{**values, "recipe": Recipe(**values["recipe"]), "out": finished_rewind})
    result = run_rewind(again)
    assert (result.trained, result.repaired) == (0, 0)
    assert _bytes(finished_rewind) == before


@pytest.mark.usefixtures("without_report")
def test_what_is_lost_is_made_again_with_the_same_bytes(small_rewind: SmallRewind, finished_rewind: Path) -> None:
    before = _bytes(finished_rewind)
    (finished_rewind / "models" / "none" / "0001.safetensors").unlink()
    broken = finished_rewind / "models" / "early_stopping" / "0002.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    (finished_rewind / "entanglement" / "0001.npz").write_bytes(b"half")
    row = next(
        path
        for path in sorted((finished_rewind / "signals.zarr" / "random_0.05").rglob("*"))
        if path.is_file() and "logits" in str(path) and path.name != "zarr.json"
    )
    row.write_bytes(row.read_bytes()[:-3])
    result = run_rewind(small_rewind())
    assert (result.trained, result.repaired) == (2, 2)
    assert _bytes(finished_rewind) == before


@pytest.mark.usefixtures("without_report")
def test_an_interrupted_run_continues_to_the_same_bytes(
    small_rewind: SmallRewind, rewind_once: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = 0
    whole = task_module.rewind

    def stops(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return whole(*args, **options)

    monkeypatch.setattr(task_module, "rewind", stops)
    with pytest.raises(StudyInterruptedError, match="12 models are kept"):
        run_rewind(small_rewind())
    assert not (tmp_path / "run" / "summary.json").exists()
    result = run_rewind(small_rewind())
    assert (result.trained, result.repaired) == (0, 5)
    assert _bytes(tmp_path / "run") == _bytes(rewind_once)


@pytest.mark.usefixtures("without_report")
def test_another_score_leaves_what_does_not_rank_by_it(
    small_rewind: SmallRewind, finished_rewind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    whole = task_module.rewind

    def counts(*args: Any, **options: Any) -> Any:
        asked.append((options["variant"], options["fraction"]))
        return whole(*args, **options)

    monkeypatch.setattr(task_module, "rewind", counts)
    result = run_rewind(small_rewind(mix=0.9))
    assert (result.trained, result.repaired) == (0, 6)
    # Ten arms rank weights; tuning alone and what trains from scratch stay.
    assert len(asked) == 6 * 10


def test_bad_input_is_refused_before_anything_is_written(small_rewind: SmallRewind, tmp_path: Path) -> None:
    for changes, word in (
        ({"methods": "cwrv"}, "methods"),
        ({"methods": "none"}, "methods"),
        ({"fractions": (1.5,)}, "fractions"),
        ({"fractions": ()}, "fractions"),
        ({"control_fraction": 0.0}, "control_fraction"),
        ({"num_models": 5}, "num_models"),
        ({"num_models": 4}, "num_models.*lira_online_fixed"),
        ({"mix": 2.0}, "mix"),
        ({"loss": "mse"}, "loss"),
        ({"loss": "hamp", "loss_args": {"gamma": 1}}, "gamma"),
        ({"scope": "block"}, "scope"),
        ({"batch_norm": "reset"}, "batch_norm"),
        ({"attacks": "lira"}, "attack"),
        ({"pool": 5000}, "pool"),
        ({"initial": "x.safetensors"}, "initial"),
        ({"checkpoint": "x.safetensors"}, "members"),
        ({"recipe": Recipe(patience=2)}, "patience"),
        ({"model": "mlpp"}, "model"),
    ):
        with pytest.raises(InputError, match=word):
            run_rewind(small_rewind(**changes))
    assert not (tmp_path / "run").exists()


def test_every_model_of_the_issue_can_be_planned(small_rewind: SmallRewind) -> None:
    for name in ("mlp", "cnn", "resnet18", "vit"):
        plan = make_plan(small_rewind(model=name, model_args={}))
        assert plan.eligible < plan.parameters
        assert build_model(name, plan.job.input_shape, 10, 0) is not None


@pytest.mark.usefixtures("without_report")
def test_vit_and_batch_norm_go_through_the_arms(small_rewind: SmallRewind) -> None:
    options = {"methods": "cwrf,zero_tune", "fractions": (0.05,), "num_models": 4, "attacks": "loss", "entangled": 1}
    fast = Recipe(epochs=1, batch_size=16)
    tiny = {"depth": 1, "width": 8, "heads": 2}
    result = run_rewind(small_rewind(model="vit", model_args=tiny, recipe=fast, tune_epochs=1, **options))
    assert set(result.summary["entanglement"]["pairs"]["pve/tfo"]) == {"all", "conv", "linear", "other"}
    small = {"channels": 2, "hidden": 8, "batch_norm": True}
    changed = small_rewind(
        model="cnn", model_args=small, recipe=fast, tune_epochs=1, batch_norm="recalibrate", **options
    )
    assert run_rewind(changed).trained == 4


@pytest.mark.usefixtures("without_report")
def test_dp_sgd_is_there_on_request(small_rewind: SmallRewind) -> None:
    pytest.importorskip("opacus")
    result = run_rewind(small_rewind(methods="dp_sgd", attacks="loss", entangled=1, recipe=Recipe(epochs=1)))
    assert list(result.summary["arms"]) == ["none", "dp_sgd"]
    assert any("epsilon" in warning for warning in result.summary["warnings"])


def test_report_is_called_with_the_folder(
    monkeypatch: pytest.MonkeyPatch, finished_rewind: Path, small_rewind: SmallRewind
) -> None:
    drawn = []
    monkeypatch.setattr(run_module, "write_rewind_report", drawn.append)
    run_rewind(small_rewind())
    assert drawn == [finished_rewind]
