"""The figures of a finished ``fastmem canary`` run, small enough to commit: ``python -m benchmarks.canary.collect RUN OUT``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.metrics import clopper_pearson

_KEPT = ("log_ratio", "kl_contrast", "prob_diff")
_CONFIG = ("data", "pool", "model", "model_args", "recipe", "nulls", "canaries", "copies", "evaluation", "seed")


def collect(run: Path) -> dict[str, Any]:
    """Design and accuracies, and for each setting the paired test, power at two levels, and the image-level t test."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    with (run / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "config": {name: summary["config"][name] for name in _CONFIG},
        "images": summary["evaluation"],
        "answer": summary["answer"],
        "settings": [_setting(cell, rows) for cell in summary["cells"]],
        "work_seconds": {name: round(seconds, 1) for name, seconds in summary["work"].items()},
        "torch": summary["environment"]["torch"],
    }


def _setting(cell: dict[str, Any], rows: list[dict[str, str]]) -> dict[str, Any]:
    marked = [row for row in rows if row["regularise"] == cell["regularise"] and row["copies"] == str(cell["copies"])]
    entry: dict[str, Any] = {
        "regularise": cell["regularise"],
        "copies": cell["copies"],
        "pairs": cell["pairs"],
        "train_accuracy": round(cell["train_accuracy"]["mean"], 4),
        "test_accuracy": round(cell["test_accuracy"]["mean"], 4),
    }
    for variant in _KEPT:
        found = cell["variants"].get(variant)
        if found is None:
            continue
        test = found["paired"]
        rank_p = np.array([float(row[f"{variant}_rank_p"]) for row in marked])
        entry[variant] = {
            "canary_mean": round(found["canary"]["mean"], 4),
            "canary_std": round(found["canary"]["std"], 4),
            "null_mean": round(found["null"]["mean"], 4),
            "null_std": round(found["null"]["std"], 4),
            **{name: round(test[name], 4) for name in ("effect", "low", "high", "auc")},
            "positive": test["positive"],
            "wilcoxon_p": float(f"{test['p_value']:.2g}"),
            "sign_flip_p": float(f"{test['p_sign_flip']:.2g}"),
            "power": {str(level): _share(rank_p <= level) for level in (0.05, 0.1)},
            "image_t_rejects": {who: found["sensitivity"]["t"][who]["k"] for who in ("canary", "null")},
            "never_saw_p": float(f"{found['controls']['never_saw']['p_value']:.2g}"),
            "other_marks_effect": round(found["controls"]["other_marks"]["effect"], 4),
            "other_marks_p": float(f"{found['controls']['other_marks']['p_value']:.2g}"),
            "values": [round(float(row[variant]), 4) for row in marked],
        }
    return entry


def _share(found: np.ndarray) -> dict[str, float]:
    low, high = clopper_pearson(int(found.sum()), len(found))
    return {"k": int(found.sum()), "n": len(found), "low": round(float(low), 3), "high": round(float(high), 3)}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
