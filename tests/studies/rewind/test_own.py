"""A model of the user's own: repaired, attacked where there are shadow models, and refused where something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmem.cli import main
from fastmem.data import load_dataset
from fastmem.errors import InputError, StoreError
from fastmem.models import build_model
from fastmem.studies.rewind import RewindConfig, run_rewind
from fastmem.training import Recipe, load_checkpoint, save_checkpoint, train_models

SmallRewind = Callable[..., RewindConfig]
SEED = 9


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """Files of a model that was trained on 60 digits, and the options that name them."""
    data = load_dataset("digits")
    rows = np.random.default_rng(4).permutation(len(data))[:60]
    members = np.zeros((1, len(data)), bool)
    members[0, rows] = True

    def build(seed: int) -> torch.nn.Module:
        return build_model("mlp", data.input_shape, 10, seed, hidden=[12])

    recipe = Recipe(epochs=8, batch_size=16)
    state = train_models(build, data.x, data.y, members, recipe, [SEED], data.channel_stats())[0].state
    save_checkpoint(tmp_path / "final.safetensors", state)
    save_checkpoint(tmp_path / "init.safetensors", build(SEED).state_dict())
    np.save(tmp_path / "members.npy", members[0])
    np.save(tmp_path / "reference.npy", np.flatnonzero(~members[0])[:40])
    names = {"checkpoint": "final.safetensors", "initial": "init.safetensors", "members": "members.npy"}
    return {option: str(tmp_path / name) for option, name in names.items()}


SIZES = {"pool": None, "reference_size": 40, "validation": 20, "test": 60, "num_models": 0}


@pytest.mark.usefixtures("without_report")
def test_the_repaired_checkpoint_has_its_frozen_weights_at_their_initial_values(
    own: dict[str, Any], small_rewind: SmallRewind, tmp_path: Path
) -> None:
    result = run_rewind(small_rewind(**own, **SIZES, reference=str(tmp_path / "reference.npy")))
    repaired, metadata = load_checkpoint(tmp_path / "run" / "repaired.safetensors")
    first, _ = load_checkpoint(own["initial"])
    last, _ = load_checkpoint(own["checkpoint"])
    names = [name for name in first if name.endswith("weight")]
    wanted = int(0.05 * sum(first[name].numel() for name in names))
    back = sum(int(((repaired[name] == first[name]) & (last[name] != first[name])).sum()) for name in names)
    # Some weights of dead inputs never moved: they count among those at their initial values either way.
    still = sum(int((last[name] == first[name]).sum()) for name in names)
    assert back <= wanted <= back + still
    assert json.loads(metadata["fastmem_rewind"])["fraction"] == 0.05
    summary = result.summary
    assert summary["models"]["initial"] == "file"
    assert "early_stopping" not in summary["arms"]
    assert list(summary["attacks"]) == ["loss"]
    assert any("no shadow models" in warning for warning in summary["warnings"])
    # A lost file is made again, the same.
    before = (tmp_path / "run" / "repaired.safetensors").read_bytes()
    (tmp_path / "run" / "repaired.safetensors").unlink()
    assert run_rewind(small_rewind(**own, **SIZES, reference=str(tmp_path / "reference.npy"))).repaired == 1
    assert (tmp_path / "run" / "repaired.safetensors").read_bytes() == before


@pytest.mark.usefixtures("without_report")
def test_shadow_models_go_the_same_way_and_the_seed_stands_for_the_file(
    own: dict[str, Any], small_rewind: SmallRewind, tmp_path: Path
) -> None:
    sizes = {**SIZES, "num_models": 4}
    by_file = run_rewind(small_rewind(**own, **sizes, methods="cwrf"))
    seeded = {**own, "initial": None, "initial_seed": SEED}
    by_seed = run_rewind(small_rewind(**seeded, **sizes, methods="cwrf", out=tmp_path / "seeded"))
    assert by_file.summary["design"] == {"kind": "rank", "num_models": 5, "targets": 1}
    assert list(by_file.summary["attacks"]) == ["lira_online_fixed", "loss"]
    files = [load_checkpoint(tmp_path / folder / "repaired.safetensors")[0] for folder in ("run", "seeded")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert by_seed.summary["models"]["initial"] == f"seed {SEED}"
    assert any("made again from seed" in warning for warning in by_seed.summary["warnings"])


@pytest.mark.usefixtures("without_report")
def test_inputs_that_were_normalised_otherwise_are_warned_of(own: dict[str, Any], small_rewind: SmallRewind) -> None:
    def warned(mean: float) -> bool:
        config = small_rewind(**own, **SIZES, methods="cwrf", input_mean=(mean,), input_std=(0.37,))
        return any("normalised otherwise" in warning for warning in run_rewind(config).summary["warnings"])

    assert not warned(0.305)
    assert warned(-400.0)


def test_missing_initial_weights_are_refused_with_the_way_out(own: dict[str, Any], small_rewind: SmallRewind) -> None:
    with pytest.raises(InputError, match=r"weights before training are missing.*--initial-seed"):
        small_rewind(**{**own, "initial": None}, **SIZES)


def test_what_does_not_fit_is_named(own: dict[str, Any], small_rewind: SmallRewind, tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.load(own["members"]))
    save_checkpoint(tmp_path / "other.safetensors", build_model("mlp", (1, 8, 8), 10, 0, hidden=[13]).state_dict())
    for changes, error, word in (
        ({"initial": str(tmp_path / "none.safetensors")}, StoreError, "initial: no file"),
        ({"initial": own["checkpoint"]}, InputError, "initial: equals the checkpoint"),
        ({"initial": str(tmp_path / "other.safetensors")}, InputError, "initial: does not fit"),
        ({"checkpoint": str(tmp_path / "other.safetensors")}, InputError, "checkpoint: does not fit"),
        ({"reference": str(tmp_path / "some.npy")}, InputError, "60 of 60 records are members"),
        ({"reference": str(tmp_path / "no.npy")}, StoreError, "reference: no file"),
        ({"initial_seed": 3}, InputError, "initial_seed"),
        ({"methods": "tune"}, InputError, "methods"),
        ({"attacks": "lira_online"}, InputError, "attacks"),
        ({"test": 5000}, InputError, "members"),
        ({"input_mean": (0.5,)}, InputError, "input_mean, input_std"),
        ({"input_mean": (0.5,), "input_std": (0.0,)}, InputError, "input_std"),
    ):
        with pytest.raises(error, match=word):
            run_rewind(small_rewind(**{**own, **SIZES, **changes}))
    assert not (tmp_path / "run").exists()


def test_the_command_says_it_in_one_line(own: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewind", "--checkpoint", own["checkpoint"], "--members", own["members"]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "weights before training are missing" in said
    assert main(["rewind", "--fractions", "[2.0]"]) == 2
    assert "fractions" in capsys.readouterr().err
