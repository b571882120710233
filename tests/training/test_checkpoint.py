"""Weights on disk: whole or absent, and never code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmem.errors import InputError, StoreError
from fastmem.models import build_model
from fastmem.training import checkpoint
from fastmem.training.checkpoint import load_checkpoint, load_into, save_checkpoint

STATE = {"a.weight": torch.randn(3, 4), "count": torch.tensor(7), "half": torch.randn(5).to(torch.bfloat16)}


def test_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_checkpoint(path, STATE, {"seed": "3", "model": "mlp"})
    state, metadata = load_checkpoint(path)
    assert metadata == {"seed": "3", "model": "mlp"}
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_takes_views_transposes_and_tied_weights(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    save_checkpoint(tmp_path / "m", {"view": whole[1:3], "turned": whole.T, "tied": whole, "again": whole})
    state, metadata = load_checkpoint(tmp_path / "m")
    assert torch.equal(state["view"], whole[1:3])
    assert torch.equal(state["turned"], whole.T)
    assert torch.equal(state["tied"], state["again"])
    assert metadata == {}


def test_overwrites_in_one_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", {"w": torch.zeros(2)})
    save_checkpoint(tmp_path / "m", {"w": torch.ones(2)})
    assert torch.equal(load_checkpoint(tmp_path / "m")[0]["w"], torch.ones(2))


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_midway_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save_checkpoint(tmp_path / "m", {"w": torch.zeros(2)})

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os if moment == "fsync" else checkpoint.Path, moment, fail)
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device.*free space"):
        save_checkpoint(tmp_path / "m", {"w": torch.ones(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    assert torch.equal(load_checkpoint(tmp_path / "m")[0]["w"], torch.zeros(2))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "m", STATE)


def test_metadata_are_strings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metadata: 'seed': 3; give strings only"):
        save_checkpoint(tmp_path / "m", STATE, {"seed": 3})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_any_cut_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_checkpoint(path, STATE)
    raw = path.read_bytes()
    for content in [raw[:length] for length in range(0, len(raw), 7)] + [b"PK\x03\x04 a zip", raw + b"more"]:
        path.write_bytes(content)
        with pytest.raises(StoreError, match="is no whole safetensors file"):
            load_checkpoint(path)
    path.write_bytes(raw)
    load_checkpoint(path)


def test_a_pickled_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "m.pt")
    with pytest.raises(StoreError, match="is no whole safetensors file"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no file"):
        load_checkpoint(tmp_path / "none")


def test_loading_into_a_model(tmp_path: Path) -> None:
    model, other = (build_model("mlp", (6,), 3, seed=seed, hidden=(4,)) for seed in (1, 2))
    save_checkpoint(tmp_path / "m", model.state_dict())
    load_into(other, load_checkpoint(tmp_path / "m")[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_state_of_another_shape_names_the_differences_and_changes_nothing() -> None:
    model = build_model("mlp", (6,), 3, seed=1, hidden=(4,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = build_model("mlp", (6,), 3, seed=2, hidden=(5,)).state_dict()
    with pytest.raises(
        InputError, match=r"target: does not fit MLP: layers\.1\.weight is \[5, 6\], the model's is \[4, 6\], .*"
    ):
        load_into(model, state, "target")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    del state["layers.1.weight"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"layers\.1\.weight is missing, extra is not in the model, .* and 1 more"):
        load_into(model, state)
