"""Trained victims, finished runs and runs under way on disk: each file whole or absent, used only under its own key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.reconstruct import Run, State
from fastmem.errors import StoreError
from fastmem.studies.reconstruct.plan import Part, Victim
from fastmem.training import load_checkpoint, save_checkpoint

__all__ = ["FOLDERS", "load_runs", "load_state", "load_victim", "save_runs", "save_state", "save_victim", "sweep_files"]

FOLDERS = ("models", "runs", "candidates")
_METADATA = "fastmem_reconstruct"


def save_victim(folder: Path, victim: Victim, state: dict[str, Tensor], report: dict[str, Any]) -> None:
    """Writes a trained victim, with how its training ended."""
    _save(folder / "models" / f"{victim.name}.safetensors", state, {"key": victim.key, "report": report})


def load_victim(folder: Path, victim: Victim) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A trained victim, or None if it is absent, damaged or of another key."""
    found = _load(folder / "models" / f"{victim.name}.safetensors", victim.key)
    return None if found is None else (found[0], found[1]["report"])


def save_state(folder: Path, part: Part, state: State) -> None:
    """Writes where an attack stands."""
    _save(folder / "runs" / f"{part.name}.state.safetensors", state.tensors(), {"key": part.key})


def load_state(folder: Path, part: Part, device: str) -> State | None:
    """Where an earlier call stood, or None."""
    found = _load(folder / "runs" / f"{part.name}.state.safetensors", part.key)
    return None if found is None else State.of_tensors(found[0], device)


def save_runs(folder: Path, part: Part, runs: tuple[Run, ...], parameters: tuple[str, ...]) -> None:
    """Writes the finished runs of a part, and drops where they stood."""
    tensors = {
        "x": torch.stack([run.x for run in runs]).cpu(),
        "multipliers": torch.stack([run.multipliers for run in runs]).cpu(),
        "steps": torch.from_numpy(runs[0].steps),
        "residuals": torch.from_numpy(np.stack([run.residuals for run in runs])),
        "diverged": torch.tensor([run.diverged or 0 for run in runs]),
    }
    _save(folder / "runs" / f"{part.name}.safetensors", tensors, {"key": part.key, "parameters": parameters})
    (folder / "runs" / f"{part.name}.state.safetensors").unlink(missing_ok=True)


def load_runs(folder: Path, part: Part) -> tuple[list[Run], tuple[str, ...]] | None:
    """The finished runs of a part, or None if they are absent, damaged or of another key."""
    found = _load(folder / "runs" / f"{part.name}.safetensors", part.key)
    if found is None:
        return None
    tensors, about = found
    runs = [
        Run(
            one,
            tensors["x"][at],
            tensors["multipliers"][at],
            tensors["steps"].numpy(),
            tensors["residuals"][at].numpy(),
            int(tensors["diverged"][at]) or None,
            part.labels[at],
        )
        for at, one in enumerate(part.settings)
    ]
    return runs, tuple(about["parameters"])


def sweep_files(folder: Path, victims: tuple[Victim, ...], parts: list[Part], own: bool) -> bool:
    """Removes files of another config; returns whether there were any."""
    expected = {f"models/{victim.name}.safetensors" for victim in victims if not own}
    for part in parts:
        expected |= {f"runs/{part.name}.safetensors", f"runs/{part.name}.state.safetensors"}
    replaced = False
    for name in ("models", "runs"):
        for path in (folder / name).glob("*.safetensors"):
            if f"{name}/{path.name}" not in expected:
                path.unlink()
                replaced = True
    return replaced


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    # One entry: safetensors writes several in an order of its own, and equal runs should give equal bytes.
    save_checkpoint(path, tensors, {_METADATA: json.dumps(about)})


def _load(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        tensors, metadata = load_checkpoint(path)
    except StoreError:
        return None
    about = json.loads(metadata.get(_METADATA, "{}"))
    return (tensors, about) if about.get("key") == key else None
