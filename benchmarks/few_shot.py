"""Few-shot episodes as a batch against one episode, and one parameter, at a time; and finished runs as one table.

    python -m benchmarks.few_shot time            CPU seconds per 100 episodes, one thread
    python -m benchmarks.few_shot collect RUN...  a Markdown table of finished `fastmem few-shot` runs
    python -m benchmarks.few_shot compact RUN OUT.json  the figures of one, small enough to commit

CPU time rather than wall time: other processes of the machine do not count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmem.attacks.membership.few_shot import draw_episodes, make_learner, run_learner
from fastmem.attacks.membership.few_shot.batch import Batch, last_best, true_positives
from fastmem.attacks.membership.few_shot.draw import Draw
from fastmem.attacks.membership.few_shot.laplacian import LAMBDAS, NEIGHBOURS
from fastmem.ops import use_backend
from fastmem.ops.episodes import class_means, squared_distances
from fastmem.ops.label_propagation import label_propagation

_RECORDS, _WIDTH = 1000, 128


def _batch(records: Tensor, draw: Draw, episode: int) -> Batch:
    part = {name: torch.from_numpy(getattr(draw, name)[episode : episode + 1]) for name in Draw.__dataclass_fields__}
    return Batch(records, part["support"], part["support_members"], part["query"], part["val"], part["val_members"])


def _loop_laplacian(records: Tensor, draw: Draw) -> np.ndarray:
    """The published protocol, episode by episode and parameter by parameter."""
    found = []
    grid = [(torch.tensor([[lam]], dtype=records.dtype), torch.tensor([[k]])) for lam in LAMBDAS for k in NEIGHBOURS]
    for episode in range(len(draw)):
        batch = _batch(records, draw, episode)
        assert batch.val is not None
        assert batch.val_members is not None
        gallery = torch.cat([batch.support, class_means(batch.support, batch.support_members)], dim=1)
        known = torch.cat([batch.support_members, torch.tensor([[False, True]])], dim=1)

        def scores(asked: Tensor, lam: Tensor, k: Tensor, gallery: Tensor = gallery, known: Tensor = known) -> Tensor:
            distances, apart = squared_distances(asked, gallery), squared_distances(asked, asked)
            return label_propagation(distances, apart, known, lam, k)[:, 0]

        hits = [true_positives(scores(batch.val, *one), batch.val_members) for one in grid]
        found.append(scores(batch.query, *grid[int(last_best(torch.stack(hits))[0])]))
    return torch.cat(found).numpy()


def _loop_simpleshot(records: Tensor, draw: Draw) -> np.ndarray:
    learner = make_learner("simpleshot")
    return torch.cat([learner(_batch(records, draw, episode)).query for episode in range(len(draw))]).numpy()


def _seconds(call: Any) -> float:
    """CPU time, the median of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return sorted(seconds)[1]


def _time() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    members = np.arange(_RECORDS) < _RECORDS // 2
    records = np.maximum(rng.normal(size=(_RECORDS, _WIDTH)) + 0.3 * members[:, None], 0)
    features = torch.from_numpy(records)
    print(
        "CPU s / 100 episodes\n\n"
        "| method | shots | batch, C++ | batch, PyTorch | loop, PyTorch | loop / batch, C++ | loop of the C++ kernel |\n"
        "|---|---|---|---|---|---|---|"
    )
    for method, loop, few in (("simpleshot", _loop_simpleshot, 100), ("laplacian", _loop_laplacian, 5)):
        learner = make_learner(method)
        for shots in (1, 5, 10):
            draw = draw_episodes(members, shots, n_episodes=500, seed=1)
            short = draw_episodes(members, shots, n_episodes=few, seed=1)
            seconds, found = {}, {}
            for backend in ("cpu", "reference"):
                with use_backend(backend):
                    found[backend] = run_learner(learner, features, short).query
                    batch = _seconds(lambda: run_learner(learner, features, draw)) / 5  # noqa: B023
                    found[f"{backend} loop"] = loop(features, short)
                    looped = _seconds(lambda: loop(features, short)) * 100 / few  # noqa: B023
                    seconds[backend] = batch, looped
            for scores in found.values():
                assert np.allclose(scores, found["reference"], rtol=1e-6, atol=1e-8), "the ways give other scores"
            (batch, kernel_loop), (slow_batch, looped) = seconds["cpu"], seconds["reference"]
            print(
                f"| {method} | {shots} | {batch:.4f} | {slow_batch:.4f} | {looped:.3f} | {looped / batch:.0f} "
                f"| {kernel_loop:.3f} |"
            )


def _collect(folders: list[str]) -> None:
    for folder in folders:
        summary = json.loads((Path(folder) / "summary.json").read_text())
        models, design = summary["models"], summary["design"]
        print(
            f"\n### {summary['data']['name']}, {models['name']} ({models['parameters']:,} weights), "
            f"{design['features']}\n\ntarget accuracy {models['target_train_accuracy']:.3f} train, "
            f"{models['target_test_accuracy']:.3f} test; pool {summary['data']['pool']}\n"
        )
        print(
            "| attack | labels | shadows | TPR, no FP (95%) | guessing | Log-MIA adjusted, no / few FP | AUC (95%) | blind AUC | shuffled AUC |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for key, variant in summary["variants"].items():
            for shots, table in variant["shots"].items():
                controls = [variant["controls"].get(name, {}).get(shots) for name in ("blind", "shuffled")]
                print(
                    _row(
                        f"{key} {shots}", table["n_labels"], 0, table, [_span(c["auc"]) if c else "-" for c in controls]
                    )
                )
        for key, rival in summary["baselines"].items():
            shots = list(rival["shots"])[-1]
            labels = 0 if rival["shadow_models"] else 2 * (int(shots) + summary["config"]["n_val"])
            print(_row(key, labels, rival["shadow_models"], rival["shots"][shots], ["-", "-"]))


def _compact(run: str, out: str) -> None:
    summary = json.loads((Path(run) / "summary.json").read_text())
    kept = ("answer", "data", "design", "models", "variants", "baselines", "warnings")
    found: dict[str, Any] = {name: summary[name] for name in kept}
    found["config"] = {
        name: value for name, value in summary["config"].items() if name not in ("out", "name", "data_root", "text")
    }
    found["torch"] = summary["environment"]["torch"]
    Path(out).write_text(json.dumps(_rounded(found), separators=(",", ":")) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _row(name: str, labels: int, shadows: int, table: dict[str, Any], controls: list[str]) -> str:
    strict = table["strict"]
    tpr, auc = strict["tpr"], table["auc"]
    found = f"{100 * tpr['mean']:.1f}% ({100 * max(tpr['low'], 0):.1f}-{100 * tpr['high']:.1f})"
    adjusted = f"{strict['adjusted']:.3f} / {table['regular']['adjusted']:.3f}"
    cells = [name, labels, shadows, found, f"{100 * strict['tpr_chance']:.1f}%", adjusted, _span(auc), *controls]
    return "| " + " | ".join(map(str, cells)) + " |"


def _span(mean: dict[str, float]) -> str:
    return f"{mean['mean']:.3f} ({mean['low']:.3f}-{mean['high']:.3f})"


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    if command == "time":
        _time()
    elif command == "collect" and rest:
        _collect(rest)
    elif command == "compact" and len(rest) == 2:
        _compact(*rest)
    else:
        sys.exit(__doc__)
