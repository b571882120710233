"""Finished ``fastmem trust`` runs, small enough to commit: ``python -m benchmarks.trust RUN [OUT.json]``.

Prints a Markdown table of the maximum-probability attack, FPR and AUC by set and calibration, and every attack on the
uncalibrated models; with a second argument the figures behind it go to that file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_ATTACK = ("recall", "recall_with_ties", "rules", "controls", "swap")
_SET = ("n_in", "n_out", "fpr", "auc", "precision", "precision_at", "mmps", "saturated_in", "saturated_out", "tied")
_CALIBRATION = ("title", "train_accuracy", "test_accuracy", "ece", "overconfidence", "test_loss", "temperatures")


def compact(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, rounded to five digits."""
    calibrations = {
        key: {name: entry[name] for name in _CALIBRATION if name in entry}
        | {"attacks": {name: _attack(attack, key == "none") for name, attack in entry["attacks"].items()}}
        for key, entry in summary["calibrations"].items()
    }
    config = {name: value for name, value in summary["config"].items() if name not in ("out", "data_root", "name")}
    kept = ("design", "models", "generator", "stream", "agreement", "warnings", "untrained")
    found = {name: summary[name] for name in kept} | {"config": config, "calibrations": calibrations}
    found["torch"] = summary["environment"]["torch"]
    return _rounded(found)


def _attack(attack: dict[str, Any], whole: bool) -> dict[str, Any]:
    """All of an attack on the uncalibrated models; of the others recall, FPR and AUC."""
    kept = _SET if whole else ("fpr", "auc")
    sets = {name: {key: entry[key] for key in kept} for name, entry in attack["sets"].items()}
    return {name: attack[name] for name in (_ATTACK if whole else ("recall",))} | {"sets": sets}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def table(summary: dict[str, Any]) -> str:
    """FPR; AUC of the maximum probability, by set and calibration."""
    entries = summary["calibrations"]
    best = {key: entry["attacks"]["max_prob"] for key, entry in entries.items()}
    untrained = summary["untrained"]["sets"]["max_prob"]
    lines = [
        _row("non-members", [entry["title"] for entry in entries.values()], "untrained AUC"),
        "|---" * (len(entries) + 2) + "|",
        _row("recall", [f"{attack['recall']['mean']:.3f}" for attack in best.values()], ""),
    ]
    for name, entry in summary["sets"].items():
        cells = [attack["sets"][name] for attack in best.values()]
        shown = [f"{cell['fpr']['mean']:.3f}; {cell['auc']['mean']:.3f}" for cell in cells]
        lines.append(_row(entry["title"], shown, f"{untrained[name]['auc']:.3f}"))
    both = [
        f"{entry['train_accuracy']['mean']:.3f} / {entry['test_accuracy']['mean']:.3f}" for entry in entries.values()
    ]
    lines.append(_row("accuracy train / test", both, ""))
    lines.append(_row("ECE", [f"{entry['ece']['mean']:.3f}" for entry in entries.values()], ""))
    mmps = [attack["sets"]["test"]["mmps"] for attack in best.values()]
    lines.append(_row("mean score TP / FP, test", [f"{each['tp']:.4f} / {each['fp']:.4f}" for each in mmps], ""))
    return "\n".join(lines)


def attacks(summary: dict[str, Any]) -> str:
    """Every attack on the uncalibrated models: recall, then FPR; AUC by set."""
    sets = summary["sets"]
    lines = [_row("attack", ["recall", *(entry["title"] for entry in sets.values())]), "|---" * (len(sets) + 2) + "|"]
    for name, attack in summary["calibrations"]["none"]["attacks"].items():
        cells = [f"{attack['sets'][key]['fpr']['mean']:.3f}; {attack['sets'][key]['auc']['mean']:.3f}" for key in sets]
        lines.append(_row(f"`{name}`", [f"{attack['recall']['mean']:.3f}", *cells]))
    return "\n".join(lines)


def _row(name: str, cells: list[str], *more: str) -> str:
    return "| " + " | ".join([name, *cells, *more]) + " |"


def main() -> None:
    """Print the tables; write the file."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    summary = json.loads((Path(sys.argv[1]) / "summary.json").read_text(encoding="utf-8"))
    print(table(summary), attacks(summary), json.dumps(summary["stream"]), sep="\n\n")
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(json.dumps(compact(summary), separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
