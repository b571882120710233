"""A model of the user's own is audited by shadow models, and what does not fit is refused before any is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmem.attacks import LiRA
from fastmem.data import load_dataset, make_design, split_around
from fastmem.errors import FastmemError, InputError
from fastmem.metrics import roc
from fastmem.models import build_model
from fastmem.signals import Signals
from fastmem.studies.audit import AuditConfig, run_audit
from fastmem.studies.audit.plan import make_plan
from fastmem.studies.audit.target import read_target, target_warnings
from fastmem.training import Recipe, save_checkpoint, train_models

SmallAudit = Callable[..., AuditConfig]
Contents = Callable[[Path], dict[str, bytes]]

_RECORDS = 300
_RECIPE = Recipe(epochs=40)


@pytest.fixture(scope="module")
def users_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network that has learned random labels by heart, saved in the ways people save, with who was in it."""
    folder = tmp_path_factory.mktemp("users")
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 256, (_RECORDS, 8, 8), dtype=np.uint8), rng.integers(0, 4, _RECORDS)
    np.savez(folder / "noise.npz", x=x, y=y)
    dataset = load_dataset(str(folder / "noise.npz"), None)
    members = np.zeros(_RECORDS, dtype=bool)
    members[rng.permutation(_RECORDS)[:60]] = True
    (trained,) = train_models(
        lambda seed: build_model("mlp", dataset.input_shape, dataset.num_classes, seed, hidden=[64]),
        dataset.x,
        dataset.y,
        members[None],
        _RECIPE,
        [7],
        (torch.tensor([0.5]), torch.tensor([0.25])),
    )
    state = trained.state
    save_checkpoint(folder / "model.safetensors", state)
    torch.save(state, folder / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "ddp.pt"
    )
    np.save(folder / "members.npy", members)
    np.save(folder / "numbers.npy", np.flatnonzero(members))
    return {
        "data": str(folder / "noise.npz"),
        "checkpoint": str(folder / "model.safetensors"),
        "members": str(folder / "members.npy"),
        "input_mean": [0.5],
        "input_std": [0.25],
        "pool": None,
        "population": None,
        "bystanders": None,
        "model_args": {"hidden": [64]},
        "num_models": 16,
        "null_models": 8,
        "recipe": _RECIPE,
        "attacks": "lira_online_fixed,rmia_online,loss",
    }


@pytest.mark.usefixtures("without_report")
def test_a_model_that_memorises_is_found(small_audit: SmallAudit, users_model: dict[str, Any]) -> None:
    config = small_audit(**users_model)
    first = run_audit(config)
    summary = first.summary
    assert first.trained == 16 + 8
    assert summary["design"]["targets"] == 1
    assert summary["design"]["n_in"]["mean"] == summary["design"]["n_out"]["mean"] == 60
    assert (summary["data"]["population"], summary["data"]["bystanders"]) == (120, 60)
    assert "with 16 shadow models" in summary["answer"]
    lira = summary["attacks"]["lira_online_fixed"]
    assert lira["auc_low"] > 0.9
    half = (lira["controls"]["shuffled"]["auc_high"] - lira["controls"]["shuffled"]["auc_low"]) / 2
    assert abs(lira["controls"]["shuffled"]["auc"] - 0.5) < 1.7 * half
    assert summary["target"]["train_accuracy"] > 0.95
    assert summary["target"]["test_accuracy"] < 0.5
    assert not [text for text in summary["warnings"] if "checkpoint" in text]
    # The audited model stands last in the table, with what it said and who was in it.
    pool = Signals.open(first.run_dir / "signals.zarr")
    members = np.load(users_model["members"])
    index = make_plan(config).split.pool_index
    assert np.array_equal(pool.keep[16], members[index])
    assert run_audit(config).trained == 0


@pytest.mark.usefixtures("without_report")
def test_how_the_model_is_saved_and_whether_models_are_kept_changes_nothing(
    small_audit: SmallAudit, users_model: dict[str, Any], tmp_path: Path, run_contents: Contents
) -> None:
    folder, few = Path(users_model["checkpoint"]).parent, {"num_models": 8, "null_models": 0, "attacks": "loss"}
    first = run_audit(small_audit(**{**users_model, **few}))
    for name, members in (("plain.pt", "numbers.npy"), ("ddp.pt", "members.npy")):
        own = {"checkpoint": str(folder / name), "members": str(folder / members), "out": tmp_path / name}
        again = run_audit(small_audit(**{**users_model, **few, **own}))
        assert run_contents(again.run_dir) == run_contents(first.run_dir)
    alone = run_audit(small_audit(**{**users_model, **few, "save_models": False}))
    assert alone.trained == 0
    assert [path.name for path in (alone.run_dir / "models").iterdir()] == ["0008.safetensors"]


@pytest.mark.usefixtures("without_report")
def test_another_model_is_asked_and_the_shadow_models_are_not_trained_again(
    small_audit: SmallAudit, users_model: dict[str, Any], tmp_path: Path
) -> None:
    few = {"num_models": 8, "null_models": 0, "attacks": "loss"}
    before = run_audit(small_audit(**{**users_model, **few})).summary
    other = tmp_path / "other.safetensors"
    network = build_model("mlp", (1, 8, 8), 4, 99, hidden=[64])
    save_checkpoint(other, network.state_dict())
    after = run_audit(small_audit(**{**users_model, **few, "checkpoint": str(other)}))
    assert after.trained == 0
    assert after.summary["target"]["sha256"] != before["target"]["sha256"]
    assert abs(after.summary["attacks"]["loss"]["auc"] - 0.5) < 0.2
    (warning,) = [text for text in after.summary["warnings"] if "checkpoint" in text]
    assert "--input-mean" in warning
    assert json.loads((after.run_dir / "summary.json").read_text())["target"]["checkpoint"] == str(other)


def test_the_counts_of_references_do_not_tell_the_members() -> None:
    """On data without any effect, an outside model's members are as likely as others to score high."""
    rng = np.random.default_rng(0)
    aucs = []
    for trial in range(60):
        keep = make_design("rank", 8, 200, trial)
        members = rng.permutation(200) < 100
        signals = Signals(
            np.zeros(200, int), np.vstack([keep, members]), stats={"margin": rng.normal(size=(9, 200, 1))}
        )
        aucs.append(roc(LiRA()(signals, targets=[8])[0], members).auc)
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(len(aucs))
    assert np.std(aucs) / np.sqrt(len(aucs)) < 0.01  # a leak of counts would show as .42


# -- who is where -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{}, {"pool": 50}, {"pool": 51, "population": 30}, {"bystanders": 0, "population": 0}]
)
def test_members_are_in_the_pool_or_nowhere(sizes: dict[str, int]) -> None:
    dataset = load_dataset("digits", None)
    members = np.random.default_rng(1).random(len(dataset)) < 0.6
    split = split_around(dataset, members, **sizes, seed=5)
    parts = [split.pool_index, split.population_index, split.bystander_index]
    assert sum(map(len, parts)) == len(set(np.concatenate(parts).tolist()))
    assert not members[split.population_index].any()
    assert not members[split.bystander_index].any()
    assert members[split.pool_index].sum() == -(-len(split.pool_index) // 2)
    assert torch.equal(split.pool.x, dataset.x[split.pool_index])
    # The sizes that were chosen, given back, choose the same.
    again = split_around(dataset, members, *map(len, parts), seed=5)
    assert np.array_equal(again.pool_index, split.pool_index)
    assert np.array_equal(again.population_index, split.population_index)


@pytest.mark.parametrize("sizes", [{"pool": 1600}, {"pool": 1510}, {"pool": 1}, {"pool": 900, "population": 900}])
def test_more_than_there_is_is_refused(sizes: dict[str, int]) -> None:
    dataset = load_dataset("digits", None)
    with pytest.raises(InputError, match=r"^members: .*half of the pool|^population, bystanders: .*give less"):
        split_around(dataset, np.arange(len(dataset)) < 750, **sizes)


# -- the door ---------------------------------------------------------------------------------------------------------


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


def _checkpoint(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "checkpoint: does not fit MLP: .* is missing"),
        ({"net": _Code()}, "holds more than tensors"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (b"text", "holds more than tensors, or is no file of torch.save|holds no state dict"),
    ],
    ids=["another network", "code", "a list", "no tensors", "bytes"],
)
def test_a_checkpoint_that_is_none_is_one_line(
    content: Any, message: str, users_model: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_model("mlp", (1, 8, 8), 4, 0, hidden=[64])
    with pytest.raises(FastmemError, match=message) as raised:
        read_target(_checkpoint(tmp_path / "own.pt", content), users_model["members"], _RECORDS, network)
    assert "\n" not in str(raised.value)
    assert "this ran" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused(users_model: dict[str, Any], tmp_path: Path) -> None:
    network = build_model("mlp", (1, 8, 8), 4, 0, hidden=[64])
    state = {name: value.clone() for name, value in network.state_dict().items()}
    next(iter(state.values())).view(-1)[0] = torch.nan
    with pytest.raises(InputError, match="checkpoint: NaN or infinite values in"):
        read_target(_checkpoint(tmp_path / "own.pt", state), users_model["members"], _RECORDS, network)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (np.ones(_RECORDS, bool), "300 of 300 records; an audit needs members and others"),
        (np.zeros(_RECORDS, bool), "0 of 300 records"),
        (np.ones(10, bool), r"bool \[10\] in .*give bool \[300\]"),
        (np.array([0, 300]), "int64"),
        (np.array([3, 3]), "1 records are named twice"),
        (np.zeros((2, 3), bool), r"\(2, 3\)"),
        (np.array([0.5]), "float64"),
        (np.array([{}], dtype=object), "no .npy file of numbers"),
    ],
    ids=["all", "none", "length", "range", "twice", "shape", "floats", "pickle"],
)
def test_members_that_do_not_fit_are_one_line(
    members: np.ndarray, message: str, users_model: dict[str, Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "own.npy", members, allow_pickle=True)
    network = build_model("mlp", (1, 8, 8), 4, 0, hidden=[64])
    with pytest.raises(FastmemError, match=f"members: .*{message}"):
        read_target(users_model["checkpoint"], str(tmp_path / "own.npy"), _RECORDS, network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": None}, r"^members: not given"),
        ({"checkpoint": None}, r"^members: given without a model of your own"),
        ({"targets": 1}, r"^targets: 1 beside --checkpoint"),
        ({"input_std": None}, r"^input_mean, input_std: one without the other"),
        ({"input_std": [0.0]}, r"^input_std: \[0.0\]; give 1 finite"),
        ({"input_mean": [0.5, 0.5, 0.5]}, r"^input_mean: .*give 1 finite"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(
    small_audit: SmallAudit, users_model: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(small_audit(**{**users_model, **change}))


def test_a_recipe_that_is_not_the_targets_own_is_said() -> None:
    shadows = {name: {"mean": mean, "std": 0.02} for name, mean in (("train_accuracy", 0.9), ("test_accuracy", 0.7))}
    assert target_warnings({"train_accuracy": 0.93, "test_accuracy": 0.68}, shadows, 10) == []
    (warning,) = target_warnings({"train_accuracy": 1.0, "test_accuracy": 0.68}, shadows, 10)
    assert "the recipe is not the one" in warning
    (warning,) = target_warnings({"train_accuracy": 0.1, "test_accuracy": 0.1}, shadows, 10)
    assert "do not trust this audit" in warning
