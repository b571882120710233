"""The figures of a finished ``fastmem rewind`` run, small enough to commit: ``python -m benchmarks.rewind.collect RUN OUT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_CONFIG = (
    "data",
    "pool",
    "reference_size",
    "validation",
    "test",
    "model",
    "model_args",
    "num_models",
    "recipe",
    "mix",
    "score_steps",
    "fractions",
    "control_fraction",
    "tune_epochs",
    "loss",
    "relax_alpha",
    "batch_norm",
    "seed",
)


def collect(run: Path) -> dict[str, Any]:
    """Utility and every attack by arm, the published ordering, and the agreement of scores."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "config": {name: summary["config"][name] for name in _CONFIG},
        "answer": summary["answer"],
        "warnings": summary["warnings"],
        "arms": {key: _arm(arm) for key, arm in summary["arms"].items()},
        "ordering": [_rounded(claim) for claim in summary["ordering"]],
        "entanglement": {
            pair: {
                kind: {name: round(found["mean"], 4) for name, found in figures.items()}
                for kind, figures in kinds.items()
            }
            for pair, kinds in summary["entanglement"]["pairs"].items()
        },
        "mass": {
            score: {top: round(found["mean"], 4) for top, found in tops.items()}
            for score, tops in summary["entanglement"]["mass"].items()
        },
        "torch": summary["environment"]["torch"],
    }


def table(found: dict[str, Any], attack: str = "lira_online_fixed") -> str:
    """The arms as a Markdown table."""
    lines = ["| models | test accuracy | LiRA AUC | TPR at 1% FPR | TPR at 0.1% FPR |", "|---|---|---|---|---|"]
    for arm in found["arms"].values():
        entry = arm["attacks"][attack]
        rates = [
            "{:.2f} ({:.2f}-{:.2f})".format(*(100 * entry["tpr"][level][name] for name in ("tpr", "low", "high")))
            for level in ("0.01", "0.001")
        ]
        area = f"{entry['auc']:.3f} ({entry['auc_low']:.3f}-{entry['auc_high']:.3f})"
        lines.append(f"| {arm['title']} | {100 * arm['test_accuracy']:.1f} | {area} | {rates[0]} | {rates[1]} |")
    return "\n".join(lines)


def _arm(arm: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": arm["title"],
        **{
            name: round(arm[name]["mean"], 4) for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
        },
        "test_accuracy_std": round(arm["test_accuracy"]["std"], 4),
        "attacks": {key: _attack(attack) for key, attack in arm["attacks"].items()},
    }


def _attack(attack: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: round(attack[name], 4) for name in ("auc", "auc_low", "auc_high")},
        "shuffled_auc": round(attack["controls"]["shuffled"]["auc"], 4),
        "tpr": {
            level: {name: round(attack["tpr_at_fpr"][level][name], 5) for name in ("tpr", "low", "high")}
            | {"resolvable": attack["tpr_at_fpr"][level]["resolvable"]}
            for level in ("0.01", "0.001")
        },
    }


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in entry.items()}


if __name__ == "__main__":
    compact = collect(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(compact, indent=1) + "\n", encoding="utf-8")
    print(table(compact))
