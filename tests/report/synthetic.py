"""A finished audit's files, made of Gaussian margins: what the report is tested and looked at with.

``fixtures/audit_schema_1`` was written once by ``python tests/report/synthetic.py`` and stays as it is: it is the old
report that must still open.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PRIORS = (0.5, 0.1, 0.01)
# key: (title, how far members stand out on the records that leak)
ATTACKS = {
    "loss": ("Loss", 0.30),
    "max_prob": ("Largest probability", 0.25),
    "entropy": ("Entropy", 0.24),
    "modified_entropy": ("Modified entropy", 0.30),
    "top3": ("Top-3 classifier", 0.26),
    "global": ("Global threshold on the margin", 0.30),
    "population": ("Population (Attack-P)", 0.31),
    "reference": ("Reference (Attack-R)", 0.9),
    "calibrated": ("Calibrated loss", 1.0),
    "lira_online": ("LiRA online", 1.9),
    "lira_offline_cdf": ("LiRA offline, one-sided", 1.5),
    "lira_offline_pdf": ("LiRA offline, two-sided", 0.8),
    "lira_online_fixed": ("LiRA online, fixed variance", 2.0),
    "lira_offline_cdf_fixed": ("LiRA offline, one-sided, fixed variance", 1.6),
    "lira_offline_pdf_fixed": ("LiRA offline, two-sided, fixed variance", 0.9),
    "rmia_online": ("RMIA online", 1.8),
    "rmia_offline": ("RMIA offline", 1.6),
    "base_online": ("BASE online", 1.8),
    "base_offline": ("BASE offline", 1.5),
}


def roc(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(-scores.ravel(), kind="stable")
    hits = members.ravel()[order]
    tpr = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
    fpr = np.concatenate([[0.0], np.cumsum(~hits) / (~hits).sum()])
    return fpr, tpr, np.concatenate([[np.inf], scores.ravel()[order]])


def _numbers(scores: np.ndarray, members: np.ndarray) -> dict[str, Any]:
    fpr, tpr, thresholds = roc(scores, members)
    n_in, n_out = int(members.sum()), int((~members).sum())
    auc = float(np.trapezoid(tpr, fpr))
    wide = 2.2 / np.sqrt(members.shape[-1])
    levels = {}
    for level in LEVELS:
        at = np.searchsorted(fpr, level, side="right") - 1
        half = 2.5 * np.sqrt(max(tpr[at] * (1 - tpr[at]), 1e-7) / (n_in / 3))
        levels[f"{level:g}"] = {
            "tpr": float(tpr[at]),
            "realised_fpr": float(fpr[at]),
            "threshold": float(thresholds[at]) if at else None,
            "n_tp": round(tpr[at] * n_in),
            "n_fp": round(fpr[at] * n_out),
            "n_in": n_in,
            "n_out": n_out,
            "low": float(max(tpr[at] - half, 0)),
            "high": float(min(tpr[at] + half, 1)),
            "resolvable": bool(level * n_out >= 1),
        }
    spread = max(wide * (1 - abs(2 * auc - 1)) / 4, 1e-4)
    return {
        "auc": auc,
        "auc_low": auc - spread,
        "auc_high": auc + spread,
        "balanced_accuracy": float(np.max(tpr + 1 - fpr) / 2),
        "tpr_at_fpr": levels,
    }


def _thin(fpr: np.ndarray, tpr: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(
        np.concatenate([np.geomspace(1, fpr.size, points) - 1, np.linspace(0, fpr.size - 1, points)]).astype(int)
    )
    return fpr[keep], tpr[keep]


def write_run(
    folder: Path,
    models: int = 64,
    records: int = 1000,
    keys: Sequence[str] = tuple(ATTACKS),
    points: int = 200,
    seed: int = 0,
) -> Path:
    """Write summary.json, report_data.npz and scores.csv of an audit that never ran."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    keep = random.random((models, records)).argsort(axis=0) < models // 2
    labels = random.integers(0, 10, records)
    leak = random.gamma(0.35, 1.6, records) * (1 + 0.5 * (labels == 8))
    hardness = random.normal(0, 2.0, records)
    arrays: dict[str, np.ndarray] = {}
    attacks: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    for key in keys:
        title, power = ATTACKS[key]
        alone = power < 0.5
        null = random.normal(0, 1, (models, records)) + (hardness if alone else 0)
        scores = null + keep * leak * (power if not alone else 1.0) * (1.2 if not alone else 0.8)
        shuffled = random.permuted(keep, axis=1)
        numbers = _numbers(scores, keep)
        controls = {
            "shuffled": _numbers(scores, shuffled),
            "never_saw": _numbers(random.permuted(null, axis=0), keep),
        }
        each = [_numbers(scores[m : m + 1], keep[m : m + 1]) for m in range(min(models, 8))]
        attacks[key] = {
            "title": title,
            "options": {"average": "median", "counts": "equal"} if key.startswith("lira") else {},
            **numbers,
            "per_target": {
                name: {"mean": float(np.mean([e[name] for e in each])), "std": float(np.std([e[name] for e in each]))}
                for name in ("auc", "balanced_accuracy")
            }
            | {
                "tpr_at_fpr": {
                    f"{level:g}": {
                        "mean": float(np.mean([e["tpr_at_fpr"][f"{level:g}"]["tpr"] for e in each])),
                        "std": float(np.std([e["tpr_at_fpr"][f"{level:g}"]["tpr"] for e in each])),
                        "realised_fpr": float(np.mean([e["tpr_at_fpr"][f"{level:g}"]["realised_fpr"] for e in each])),
                    }
                    for level in LEVELS
                }
            },
            "ppv": {
                f"{prior:g}": {
                    name: prior
                    * at["tpr"]
                    / max(prior * at["tpr"] + (1 - prior) * max(at["realised_fpr"], 3 / at["n_out"]), 1e-12)
                    for name, at in numbers["tpr_at_fpr"].items()
                }
                for prior in PRIORS
            },
            "controls": controls,
            "details": {"floored_spreads": 3, "tie_mass": 0.000125} if key.startswith("lira") else {},
            "seconds": float(random.gamma(2, 0.05)),
            "warnings": ["3 spreads were floored at 1e-6 of the pooled spread"] if key == "lira_online" else [],
        }
        for name, (fpr, tpr, _) in {
            f"roc_{key}": roc(scores, keep),
            f"roc_{key}__shuffled": roc(scores, shuffled),
            f"roc_{key}__never_saw": roc(random.permuted(null, axis=0), keep),
        }.items():
            arrays[f"{name}_fpr"], arrays[f"{name}_tpr"] = _thin(fpr, tpr, points)
        edges = np.linspace(scores.min(), scores.max(), 61)
        arrays[f"hist_{key}_edges"] = edges
        arrays[f"hist_{key}_in"] = np.histogram(scores[keep], edges)[0]
        arrays[f"hist_{key}_out"] = np.histogram(scores[~keep], edges)[0]
        columns[f"{key}_in"] = np.where(keep, scores, 0).sum(0) / keep.sum(0)
        columns[f"{key}_out"] = np.where(~keep, scores, 0).sum(0) / (~keep).sum(0)
    best = max(attacks, key=lambda key: attacks[key]["tpr_at_fpr"]["0.01"]["tpr"])
    exposure = columns[f"{best}_in"]
    order = np.argsort(-exposure)
    found = 1 / (1 + np.exp(3 - exposure))
    top = order[:24]
    yy, xx = np.mgrid[:8, :8] / 8
    pictures = 127 + 127 * np.sin(
        labels[top, None, None] * xx
        + yy * 6
        + random.normal(0, 1, (top.size, 1, 1))
        + random.normal(0, 0.3, (top.size, 8, 8))
    )
    arrays |= {
        "exposed_index": top,
        "exposed_label": labels[top],
        "exposed_score": exposure[top],
        "exposed_rank_std": np.geomspace(4, 60, top.size),
        "exposed_picture": pictures[:, None].astype(np.uint8),
    }
    summary = _summary(attacks, best, models, records, keep)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    np.savez_compressed(folder / "report_data.npz", **arrays)  # type: ignore[arg-type]
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["record", "label", "exposure", "found_at_1pct_fpr", *columns])
        for record in order:
            values = [f"{values[record]:.6g}" for values in (exposure, found, *columns.values())]
            writer.writerow([record, labels[record], *values])
    return folder


def _summary(attacks: dict[str, Any], best: str, models: int, records: int, keep: np.ndarray) -> dict[str, Any]:
    rate = attacks[best]["tpr_at_fpr"]["0.01"]["tpr"]
    inside = keep.sum(axis=1)
    return {
        "schema": 1,
        "study": "audit",
        "fastmem_version": "0.1.0",
        "config_hash": "9c1d7e0f4f6f2d1f6a0c3a6f3b8e5d7c1a2b3c4d5e6f708192a3b4c5d6e7f809",
        "created": "2026-01-15T10:30:00+00:00",
        "config": {
            "data": "digits",
            "model": {"name": "mlp", "hidden": [128]},
            "num_models": models,
            "recipe": {
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "epochs": 40,
                "batch_size": 64,
                "weight_decay": 0.0005,
            },
            "seed": 0,
            "attacks": list(attacks),
        },
        "answer": f"Yes: at a false alarm rate of 1%, {attacks[best]['title']} names {100 * rate:.1f}% of the training records, "
        f"{100 * rate:.0f} times what guessing finds.",
        "data": {
            "name": "digits",
            "fingerprint": "3f0a61be6c7a1c8b0f8f4b40fb1a2a3a9b1c0ddee7c2a6f4453b7e8f9a0b1c2d",
            "pool": records,
            "population": records // 4,
            "bystanders": records // 4,
            "num_classes": 10,
            "input_shape": [1, 8, 8],
            "class_names": [str(digit) for digit in range(10)],
        },
        "design": {
            "kind": "rank",
            "num_models": models,
            "null_models": models // 4,
            "targets": models,
            "n_in": {"min": int(inside.min()), "mean": float(inside.mean()), "max": int(inside.max())},
            "n_out": {
                "min": int(records - inside.max()),
                "mean": float(records - inside.mean()),
                "max": int(records - inside.min()),
            },
        },
        "models": {
            "name": "mlp",
            "parameters": 9610,
            "train_accuracy": {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0},
            "test_accuracy": {"mean": 0.931, "std": 0.011, "min": 0.902, "max": 0.957},
        },
        "headline": {"attack": "lira_online", "rule": "the first that was run of LiRA online, RMIA online, loss"},
        "exposure_attack": best,
        "attacks": attacks,
        "stages": {"data": 0.3, "train": 41.2, "query": 2.1, "controls": 18.7, "attacks": 6.3, "metrics": 8.9},
        "warnings": [f"a false positive rate of 1e-05 cannot be resolved with {int((~keep).sum())} non-members"],
        "environment": {"python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.0", "device": "cpu", "threads": 2},
    }


if __name__ == "__main__":
    write_run(
        Path(__file__).parent / "fixtures" / "audit_schema_1",
        models=16,
        records=150,
        keys=("loss", "population", "reference", "lira_online", "lira_offline_cdf", "rmia_online"),
        points=40,
    )
