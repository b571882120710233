"""Few-shot episodes as a batch against one episode, and one parameter, at a time; and finished runs as one table.

    python -m benchmarks.few_shot time            CPU seconds per 100 episodes, one thread
    python -m benchmarks.few_shot collect RUN...  a Markdown table of finished `fastmem few-shot` runs

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
from fastmem.attacks.membership.few_shot.batch import Batch, class_means, last_best, true_positives
from fastmem.attacks.membership.few_shot.draw import Draw
from fastmem.attacks.membership.few_shot.laplacian import LAMBDAS, NEIGHBOURS, laplacian_scores

_RECORDS, _WIDTH = 1000, 128


def _batch(records: Tensor, draw: Draw, episode: int) -> Batch:
    part = {name: torch.from_numpy(getattr(draw, name)[episode : episode + 1]) for name in Draw.__dataclass_fields__}
    return Batch(
        records[part["support"]],
        part["support_members"],
        records[part["query"]],
        records[part["val"]],
        part["val_members"],
    )


def _loop_laplacian(records: Tensor, draw: Draw) -> np.ndarray:
    """The published protocol, episode by episode and parameter by parameter."""
    found = []
    grid = [
        (torch.tensor([[lam]], dtype=records.dtype), torch.tensor([[k]], dtype=records.dtype))
        for lam in LAMBDAS
        for k in NEIGHBOURS
    ]
    for episode in range(len(draw)):
        batch = _batch(records, draw, episode)
        assert batch.val is not None
        assert batch.val_members is not None
        gallery = torch.cat([batch.support, class_means(batch.support, batch.support_members)], dim=1)
        known = torch.cat([batch.support_members, torch.tensor([[False, True]])], dim=1)
        hits = [
            true_positives(laplacian_scores(batch.val, gallery, known, *one)[:, 0], batch.val_members) for one in grid
        ]
        best = grid[int(last_best(torch.stack(hits))[0])]
        found.append(laplacian_scores(batch.query, gallery, known, *best)[:, 0])
    return torch.cat(found).numpy()


def _loop_simpleshot(records: Tensor, draw: Draw) -> np.ndarray:
    learner = make_learner("simpleshot")
    return torch.cat([learner(_batch(records, draw, episode)).query for episode in range(len(draw))]).numpy()


def _seconds(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _time() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    members = np.arange(_RECORDS) < _RECORDS // 2
    records = np.maximum(rng.normal(size=(_RECORDS, _WIDTH)) + 0.3 * members[:, None], 0)
    features = torch.from_numpy(records)
    print(
        "| method | shots | batch, CPU s / 100 episodes | loop, CPU s / 100 episodes | ratio |\n|---|---|---|---|---|"
    )
    for method, loop, few in (("simpleshot", _loop_simpleshot, 100), ("laplacian", _loop_laplacian, 3)):
        learner = make_learner(method)
        for shots in (1, 5, 10):
            draw = draw_episodes(members, shots, n_episodes=200, seed=1)
            short = draw_episodes(members, shots, n_episodes=few, seed=1)
            run_learner(learner, features, short)
            together = min(_seconds(lambda: run_learner(learner, features, draw)) for _ in range(2)) / 2  # noqa: B023
            looped = _seconds(lambda: loop(features, short)) * 100 / few  # noqa: B023
            agree = np.allclose(
                run_learner(learner, features, short).query, loop(features, short), rtol=1e-6, atol=1e-8
            )
            assert agree, "the loop gives other scores"
            print(f"| {method} | {shots} | {together:.3f} | {looped:.3f} | {looped / together:.1f} |")


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
    else:
        sys.exit(__doc__)
