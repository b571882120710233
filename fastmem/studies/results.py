"""What every study leaves in its folder: summary.json, scores.csv, report_data.npz, config.yaml.

All numbers are in ``summary.json``; the report and the terminal's table are drawn from these files alone.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastmem
from fastmem.engine import content_key, write_atomically
from fastmem.studies.answer import strongest_key
from fastmem.studies.membership import Outcome
from fastmem.studies.options import plain, to_yaml

__all__ = [
    "OUTPUTS",
    "environment",
    "mask_counts",
    "spread",
    "summary_of",
    "write_arrays",
    "write_config",
    "write_results",
    "write_scores",
    "write_summary",
]

SCHEMA = 1
OUTPUTS = ("summary.json", "scores.csv", "report_data.npz", "report.html")

_EXPOSED_PICTURES = 24


def write_config(folder: Path, config: Any) -> None:
    """``config.yaml``: enough to run the study again."""
    with write_atomically(folder / "config.yaml") as path:
        path.write_text(to_yaml(config), encoding="utf-8")


def write_results(
    folder: Path,
    study: str,
    config: Any,
    outcomes: Sequence[Outcome],
    labels: np.ndarray,
    index: np.ndarray,
    summary: Mapping[str, Any],
    pictures: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes the summary, the scores of every record and the report's arrays.

    Args:
        folder: The run's folder.
        study: ``"audit"`` or ``"attack"``.
        config: The study's config.
        outcomes: A result per attack.
        labels: Class of each record [N].
        index: Number of each record in the data set it came from [N].
        summary: The study's own entries: answer, data, design, models, stages, warnings.
        pictures: uint8 [N, C, H, W] where the records are images.

    Returns:
        The whole summary.
    """
    attacks = {outcome.key: outcome.entry for outcome in outcomes}
    best = next(outcome for outcome in outcomes if outcome.key == strongest_key(attacks))
    # Most exposed first; records that no target trained on have no exposure and come last.
    order = np.argsort(-np.nan_to_num(best.mean_in, nan=-np.inf), kind="stable")
    write_scores(folder, _score_columns(outcomes, best, labels, index, order))
    write_arrays(folder, _report_arrays(outcomes, best, labels, index, order[:_EXPOSED_PICTURES], pictures))
    whole = summary_of(study, config, {**summary, "exposure_attack": best.key, "attacks": attacks})
    write_summary(folder, whole)
    return whole


def summary_of(study: str, config: Any, entries: Mapping[str, Any]) -> dict[str, Any]:
    """A whole summary: a study's own entries, and what they come from.

    Args:
        study: Its name on the command line.
        config: Its config.
        entries: Every number it found.
    """
    return {
        "schema": SCHEMA,
        "study": study,
        "fastmem_version": fastmem.__version__,
        "config_hash": content_key(config=config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": plain(config),
        **entries,
        "environment": environment(),
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """``summary.json``: all numbers."""
    with write_atomically(folder / "summary.json") as path:
        path.write_text(json.dumps(_json(summary), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_scores(folder: Path, columns: Mapping[str, np.ndarray]) -> None:
    """``scores.csv`` from columns of one length."""
    with (
        write_atomically(folder / "scores.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """``report_data.npz``: what the report draws."""
    with write_atomically(folder / "report_data.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def environment() -> dict[str, Any]:
    """Versions and hardware, as far as they bear on numbers or times."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and range."""
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def mask_counts(keep: np.ndarray, targets: Sequence[int]) -> dict[str, dict[str, float]]:
    """How many records are members, and how many not, in each target."""
    members = keep[list(targets)].sum(axis=1)
    counts = {"n_in": members, "n_out": keep.shape[1] - members}
    return {
        name: {"min": int(count.min()), "mean": float(count.mean()), "max": int(count.max())}
        for name, count in counts.items()
    }


def _score_columns(
    outcomes: Sequence[Outcome], best: Outcome, labels: np.ndarray, index: np.ndarray, order: np.ndarray
) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {
        "record": index,
        "label": labels,
        "exposure": best.mean_in,
        "found_at_1pct_fpr": best.found,
    }
    for outcome in outcomes:
        columns[f"{outcome.key}_in"], columns[f"{outcome.key}_out"] = outcome.mean_in, outcome.mean_out
    return {name: column[order] for name, column in columns.items()}


def _report_arrays(
    outcomes: Sequence[Outcome],
    best: Outcome,
    labels: np.ndarray,
    index: np.ndarray,
    shown: np.ndarray,
    pictures: np.ndarray | None,
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for outcome in outcomes:
        arrays |= outcome.arrays
    arrays |= {
        "exposed_index": index[shown],
        "exposed_label": labels[shown],
        "exposed_score": best.mean_in[shown],
        "exposed_rank_std": best.rank_std[shown],
    }
    if pictures is not None:
        arrays["exposed_picture"] = pictures[shown]
    return arrays


def _json(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null."""
    if isinstance(value, Mapping):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _json(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processor() -> str:
    """The processor's model where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
