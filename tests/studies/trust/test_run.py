"""A trust study runs end to end, continues after any loss with the same bytes, and never reuses what is stale."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from fastmem.errors import InputError, StoreError
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.trust import TrustConfig, run_trust
from fastmem.studies.trust import run as run_module
from fastmem.studies.trust.scores import ATTACKS
from fastmem.training import Recipe
from fastmem.training.gan import GanRecipe

SmallTrust = Callable[..., TrustConfig]


def _bytes(folder: Path) -> dict[str, bytes]:
    files = [folder / "scores.csv", folder / "report_data.npz", *sorted((folder / "models").rglob("*.safetensors"))]
    files += sorted(path for path in (folder / "signals.zarr").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_leaves_every_file_and_consistent_numbers(trust_once: Path) -> None:
    names = {path.name for path in trust_once.iterdir()} - {".lock"}
    assert names == {
        "config.yaml",
        "models",
        "report.html",
        "report_data.npz",
        "scores.csv",
        "signals.zarr",
        "summary.json",
    }
    summary = json.loads((trust_once / "summary.json").read_text())
    assert list(summary["attacks"]) == list(ATTACKS)
    assert list(summary["calibrations"]) == ["none", "label_smoothing", "temperature", "temperature_fit", "ensemble"]
    assert list(summary["sets"]) == ["test", "permuted", "scaled", "unnormalised", "noise", "photos", "fake"]
    for calibration in summary["calibrations"].values():
        assert calibration["train_accuracy"]["mean"] > calibration["test_accuracy"]["mean"] - 0.2
        for attack in calibration["attacks"].values():
            assert len(attack["controls"]["never_saw"]) == len(attack["controls"]["shuffled"]) == 2
            for entry in attack["sets"].values():
                assert 0 <= entry["fpr"]["low"] <= entry["fpr"]["mean"] <= entry["fpr"]["high"] <= 1
                assert entry["n_in"] == entry["n_out"] == 30
    stream = summary["stream"]
    # A generator of six steps may never be accused: then drawing ends at the limit.
    assert stream["found"] == 1 or (stream["found"], stream["drawn"]) == (0, 1000)
    assert stream["low"] <= stream["rate"] == stream["found"] / stream["drawn"] <= stream["high"]
    assert summary["attacks"]["max_prob"]["tpr_at_fpr"]["0.01"]["resolvable"] is False


def test_scores_are_those_of_the_summary(trust_once: Path) -> None:
    summary = json.loads((trust_once / "summary.json").read_text())
    with (trust_once / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 * 8
    plain = summary["calibrations"]["none"]["attacks"]
    for key in ("max_prob", "top3", "lira_offline_cdf"):
        called = [int(row[f"{key}_calls"]) for row in rows if row["set"] == "permuted"]
        assert np.mean(called) == pytest.approx(plain[key]["sets"]["permuted"]["fpr"]["values"][0])
    members = [float(row["max_prob"]) for row in rows if row["set"] == "member"]
    threshold = plain["max_prob"]["rules"][0]["threshold"]
    assert np.mean(np.array(members) > threshold) == pytest.approx(plain["max_prob"]["recall"]["values"][0])


@pytest.mark.usefixtures("without_report")
def test_config_yaml_runs_the_same_study_again(finished_trust: Path) -> None:
    before = _bytes(finished_trust)
    values = yaml.safe_load((finished_trust / "config.yaml").read_text())
    again = TrustConfig(
        **{**values, "recipe": Recipe(**values["recipe"]), "gan": GanRecipe(**values["gan"]), "out": finished_trust}
    )
    assert run_trust(again).trained == 0
    assert _bytes(finished_trust) == before


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"temperature": 3.0}, 0),
        ({"gan": GanRecipe(steps=7, batch_size=8, width=4, latent=8)}, 0),
        ({"smoothing": 0.1}, 6),
        ({"recipe": Recipe(optimizer="adam", schedule="constant", epochs=9)}, 18),
    ],
)
@pytest.mark.usefixtures("without_report", "finished_trust")
def test_a_change_costs_what_it_touches(small_trust: SmallTrust, change: dict[str, object], trained: int) -> None:
    assert run_trust(small_trust(attacks="max_prob", **change)).trained == trained


@pytest.mark.usefixtures("without_report")
def test_what_is_lost_is_made_again_with_the_same_bytes(small_trust: SmallTrust, finished_trust: Path) -> None:
    before = _bytes(finished_trust)
    (finished_trust / "models/none/0003.safetensors").unlink()
    (finished_trust / "models/gan.safetensors").write_bytes(b"cut short")
    chunk = next(path for path in (finished_trust / "signals.zarr/none/logits/c/1").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-4])
    assert run_trust(small_trust()).trained == 1
    assert _bytes(finished_trust) == before


@pytest.mark.usefixtures("without_report")
def test_ctrl_c_says_what_is_kept(small_trust: SmallTrust, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "train_gan", interrupted)
    with pytest.raises(StudyInterruptedError, match="18 models are kept in "):
        run_trust(small_trust())
    monkeypatch.undo()
    monkeypatch.setattr("fastmem.studies.trust.run.write_trust_report", lambda folder: None)
    assert run_trust(small_trust()).trained == 0


def test_two_processes_do_not_share_a_folder(small_trust: SmallTrust) -> None:
    from fastmem.engine import RunFolder

    with RunFolder(small_trust().run_dir).locked(), pytest.raises(StoreError, match="another fastmem process"):
        run_trust(small_trust())


@pytest.mark.usefixtures("without_report")
def test_records_that_are_no_images(small_trust: SmallTrust, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(200, 6)) + y[:, None], y=y)
    summary = run_trust(
        small_trust(data=str(tmp_path / "own.npz"), num_models=2, attacks="max_prob,loss", calibrations="temperature")
    ).summary
    assert list(summary["sets"]) == ["test", "permuted", "scaled", "unnormalised", "noise"]
    assert summary["stream"] is None
    assert list(summary["attacks"]) == ["max_prob", "loss"]


@pytest.mark.usefixtures("without_report")
def test_memorised_labels_are_found_and_the_controls_are_not(small_trust: SmallTrust, tmp_path: Path) -> None:
    """Random labels can only be learned by heart; a model that never saw the records must show nothing of it."""
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "own.npz", x=rng.integers(0, 256, (900, 8, 8), dtype=np.uint8), y=rng.integers(0, 10, 900))
    config = small_trust(
        data=str(tmp_path / "own.npz"),
        pool=400,
        test=400,
        held_out=100,
        num_models=2,
        model_args={"hidden": [64]},
        recipe=Recipe(optimizer="adam", learning_rate=0.003, schedule="constant", epochs=60),
        nonmembers="permuted",
        calibrations="temperature",
        attacks="max_prob,entropy,top3,loss",
    )
    summary = run_trust(config).summary
    for attack in summary["calibrations"]["none"]["attacks"].values():
        assert min(entry["auc_low"] for entry in attack["original"]) > 0.6
        for areas in attack["controls"].values():
            for area in areas:
                assert abs(area["auc"] - 0.5) < 1.7 * (area["auc_high"] - area["auc_low"]) / 2
    untrained = summary["untrained"]["sets"]["max_prob"]["test"]
    assert untrained["auc_low"] < 0.5 < untrained["auc_high"]


@pytest.mark.usefixtures("without_report")
def test_laplace_has_rows_of_its_own_and_trains_nothing(small_trust: SmallTrust, finished_trust: Path) -> None:
    pytest.importorskip("curvlinops", reason="the laplace extra is not installed")
    result = run_trust(small_trust(calibrations="laplace", attacks="max_prob"))
    assert result.trained == 0
    plain, laplace = (result.summary["calibrations"][key] for key in ("none", "laplace"))
    assert laplace["test_accuracy"]["mean"] == pytest.approx(plain["test_accuracy"]["mean"], abs=0.1)
    assert (
        laplace["attacks"]["max_prob"]["sets"]["scaled"]["mmps"]
        != plain["attacks"]["max_prob"]["sets"]["scaled"]["mmps"]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nonmembers": "permutedd"}, "nonmembers: unknown name 'permutedd'; did you mean 'permuted'"),
        ({"nonmembers": "own:missing"}, "nonmembers: own:missing: "),
        ({"calibrations": "lapace"}, "calibrations: unknown name 'lapace'; did you mean 'laplace'"),
        ({"attacks": "maxprob"}, "attacks: unknown name 'maxprob'; did you mean 'max_prob'"),
        ({"attacks": "rmia_offline", "num_models": 4}, "num_models: 4, but rmia_offline compares with other pairs"),
        ({"pool": 1796}, "held_out: 40 records; digits has 0 left|test: 60 records; digits has 1 left"),
        ({"pool": 81}, "pool: 81 records; give an even number"),
        ({"num_models": 3}, "num_models: 3; give an even number"),
        ({"targets": 8}, "targets: 8; there are 6 models"),
        ({"temperature": 0.0}, "temperature: 0.0; give a number above 0"),
        ({"smoothing": 1.0}, "smoothing: 1.0; give a share"),
        ({"generator": "nowhere"}, "generator: no folder 'nowhere'"),
        ({"recipe": Recipe(patience=2)}, "recipe.patience: 2"),
        ({"device": "gpu"}, "device: unknown name 'gpu'"),
        ({"ray_address": "auto"}, "ray_address: auto with the local engine"),
        ({"data": "mnist", "data_root": None}, "data_root: "),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    small_trust: SmallTrust, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], problem: str
) -> None:
    monkeypatch.delenv("FASTMEM_DATA", raising=False)
    with pytest.raises(InputError, match=f"^{problem}"):
        run_trust(small_trust(**change))


def test_a_generator_is_tried_at_the_door(small_trust: SmallTrust, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    import torch

    module = ModuleType("own_images")
    module.__dict__.update(
        nan=lambda count, seed: torch.full((count, 1, 8, 8), float("nan")),
        colour=lambda count, seed: torch.rand(count, 3, 8, 8),
        few=lambda count, seed: torch.rand(count - 1, 1, 8, 8),
    )
    monkeypatch.setitem(sys.modules, "own_images", module)
    for name, problem in (
        ("nan", "NaN or infinities in 30 of 30"),
        ("colour", "returned shape"),
        ("few", "29 images of 30"),
    ):
        with pytest.raises(InputError, match=f"^generator: .*{problem}"):
            run_trust(small_trust(generator=f"own_images:{name}"))
    assert not small_trust().run_dir.exists()


@pytest.mark.usefixtures("without_report")
def test_a_folder_is_a_set_but_no_stream(small_trust: SmallTrust, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "made").mkdir()
    for place in range(30):
        Image.fromarray(np.full((8, 8), 8 * place, np.uint8)).save(tmp_path / "made" / f"{place:02d}.png")
    config = small_trust(generator=str(tmp_path / "made"), calibrations="temperature", num_models=2, attacks="max_prob")
    summary = run_trust(config).summary
    assert summary["sets"]["fake"]["records"] == 30
    assert summary["stream"] is None


def test_a_model_that_laplace_cannot_take(small_trust: SmallTrust, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    from torch import nn

    module = ModuleType("own_net")
    module.__dict__["make"] = lambda input_shape, num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(64, num_classes), nn.LogSoftmax(dim=1)
    )
    monkeypatch.setitem(sys.modules, "own_net", module)
    with pytest.raises(InputError, match=r"^calibrations: laplace, but Sequential ends in LogSoftmax"):
        run_trust(small_trust(model="own_net:make", model_args={}, calibrations="laplace"))


def test_the_command_prints_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fastmem.cli import main

    assert main(["trust", "--out", str(tmp_path / "x"), "--nonmembers", "permuted,emnist"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastmem: error: nonmembers: unknown name 'emnist'; did you mean 'mnist'")
    assert error.count("\n") == 1
    assert main(["trust", "--print-config", "--recipe.epochs", "3"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["recipe"]["optimizer"] == "adam"
    assert values["recipe"]["epochs"] == 3
    assert values["gan"]["steps"] == 1500
