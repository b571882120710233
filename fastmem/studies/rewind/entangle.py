"""Do the weights that carry the risk carry what was learned, too? Scores of one model against each other, saved.

What a correlation of ``|g w|`` scores shows first is their common factor ``|w|``: beside PVE against TFO stand scores
that saw no member (KL alone), no gradient (``|w|``), no weight (``|g|`` alone) and nothing at all (random).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor, nn

from fastmem.defenses import eligible_weights
from fastmem.engine import write_atomically
from fastmem.metrics import entanglement
from fastmem.ops.top_fraction import top_fraction
from fastmem.studies.rewind.arms import SCORED_IN_REPORT
from fastmem.studies.rewind.job import Job

__all__ = ["PAIRS", "read_entanglement", "write_entanglement"]

#: Which scores are compared: the published pair, then its controls.
PAIRS = (
    ("pve", "tfo"),
    ("kl_only", "tfo"),
    ("grad", "tfo"),
    ("weight", "tfo"),
    ("weight", "pve"),
    ("past", "tfo"),
    ("moved", "tfo"),
    ("random", "tfo"),
)
_TOP = 0.01
_BINS = 48
# Sizes at which the share of the score's mass in its top is stated.
_MASS = (0.001, 0.01, 0.1)


def write_entanglement(job: Job, row: int, network: nn.Module, scores: Callable[[str], dict[str, Tensor]]) -> None:
    """Compares a model's scores and saves what was found, unless it is there."""
    file, key = job.entanglement(row), job.entangle_keys[row]
    if read_entanglement(file, key) is not None:
        return
    kinds = eligible_weights(network, job.config.norms, job.config.biases)
    arrays = {kind: {n: s.double().cpu().numpy() for n, s in scores(kind).items()} for kind in SCORED_IN_REPORT}
    found: dict[str, Any] = {
        "pairs": {
            f"{a}/{b}": {kind: one.to_dict() for kind, one in entanglement(arrays[a], arrays[b], kinds, _TOP).items()}
            for a, b in PAIRS
        },
        "mass": {kind: _mass(arrays[kind]) for kind in ("pve", "tfo")},
        "layers": {name: {"kind": kind, "weights": int(arrays["pve"][name].size)} for name, kind in kinds.items()},
    }
    shares = {
        f"share_{score}_{fraction:g}": _shares(scores(score), fraction, job.config.scope)
        for score in ("pve", "tfo")
        for fraction in dict.fromkeys((*job.config.fractions, job.config.control_fraction))
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(file) as temporary, temporary.open("wb") as stream:
        text = np.array(json.dumps({"key": key, **found}))
        np.savez_compressed(stream, allow_pickle=False, found=text, **shares, **_cloud(arrays["pve"], arrays["tfo"]))


def read_entanglement(file: Path, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What was saved, numbers and arrays; None if it is absent, damaged or of another key."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        found = json.loads(str(arrays.pop("found")))
    except Exception:  # a damaged file may fail in any way, and is made again
        return None
    return (found, arrays) if found.get("key") == key else None


def _shares(scores: dict[str, Tensor], fraction: float, scope: str) -> np.ndarray:
    """Which part of each tensor's weights is in the top."""
    masks = top_fraction(scores, fraction, cast(Literal["global", "layer"], scope)).masks
    return np.array([mask.count / mask.shape.numel() for mask in masks.values()])


def _mass(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Share of the total score in the top of each size."""
    flat = np.sort(np.concatenate([values.ravel() for values in scores.values()]))[::-1]
    total = flat.sum()
    return {f"{top:g}": float(flat[: max(1, int(top * len(flat)))].sum() / total) if total else 0.0 for top in _MASS}


def _cloud(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Counts of weights by the logarithms of two scores."""
    first, second = (np.concatenate([values.ravel() for values in scores.values()]) for scores in (a, b))
    both = (first > 0) & (second > 0)
    logs = [np.log10(values[both]) for values in (first, second)] if both.any() else [np.zeros(1), np.zeros(1)]
    # All but the faintest thousandth, which would stretch the axes for nothing.
    ranges = [(np.quantile(values, 0.001), max(values.max(), values.min() + 1e-9)) for values in logs]
    counts, *edges = np.histogram2d(*logs, bins=_BINS, range=ranges)
    return {"cloud": counts.astype(np.int64), "cloud_x": edges[0], "cloud_y": edges[1]}
