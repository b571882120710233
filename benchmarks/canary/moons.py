"""The two-moons toy of the one-sample memorisation paper, with the control it lacks: ``python -m benchmarks.canary.moons``.

Two moons and a third coordinate z ~ N(0, s); one more point has z = 1 and label 1. A network counts as "memorised" if
setting z to 1 raises the class-1 output of the label-1 points (paired t test, p < 0.1). The control is the same network,
same seed, that never saw the point; the answer is the paired difference of the two.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_moons

from fastmem.metrics import clopper_pearson, image_tests, memorisation_test
from fastmem.models import build_model
from fastmem.training import Recipe, train_models

_SEED = 2022
_PUBLISHED = {0.0: 0.826, 0.1: 0.414, 0.25: 0.746, 0.5: 0.644}  # 500 networks each, logits


def measure(nets: int) -> list[dict[str, Any]]:
    """A row per width of the noise coordinate."""
    return [_cell(width, nets) for width in _PUBLISHED]


def _cell(width: float, nets: int) -> dict[str, Any]:
    rng = np.random.default_rng([_SEED, int(100 * width)])
    points, labels = make_moons(1000, noise=0.1, random_state=int(rng.integers(2**31)))
    points = np.asarray(points) - np.mean(points, axis=0)
    x = np.concatenate([points, rng.normal(0.0, width, (1000, 1)) if width else np.zeros((1000, 1))], axis=1)
    canary = np.append(points[rng.integers(1000)], 1.0)
    x, y = torch.from_numpy(np.vstack([x, canary]).astype(np.float32)), torch.from_numpy(np.append(labels, 1))
    build = functools.partial(build_model, "mlp", (3,), 2, hidden=(32, 128, 128))
    recipe = Recipe(optimizer="adam", learning_rate=1e-3, schedule="constant", epochs=100, batch_size=1001)
    plain, seeds = (torch.zeros(3), torch.ones(3)), [1000 + net for net in range(nets)]
    inside = x[:1000][y[:1000] == 1]
    raised = inside.clone()
    raised[:, 2] = 1.0
    row: dict[str, Any] = {"s": width, "published": _PUBLISHED[width]}
    means = {}
    for group, count in (("canary", 1001), ("never", 1000)):
        keep = np.zeros((nets, 1001), dtype=bool)
        keep[:, :count] = True
        shifts = []
        for result in train_models(build, x, y, keep, recipe, seeds, plain):
            network = build(seed=0).eval()
            network.load_state_dict(result.state)
            with torch.no_grad():
                logits = torch.stack([network(raised), network(inside)]).double()
            shifts.append(
                (logits[0, :, 1] - logits[1, :, 1], logits.softmax(-1)[0, :, 1] - logits.softmax(-1)[1, :, 1])
            )
        for place, kind in enumerate(("logits", "probabilities")):
            moved = [shift[place].numpy() for shift in shifts]
            tests = [image_tests(each, np.zeros(len(each)))["t"] for each in moved]
            k = sum(p < 0.1 for p in tests)
            low, high = clopper_pearson(k, nets)
            row[f"{kind} {group}"] = {"memorised": k / nets, "low": round(float(low), 3), "high": round(float(high), 3)}
            means[kind, group] = np.array([each.mean() for each in moved])
    for kind in ("logits", "probabilities"):
        test = memorisation_test(means[kind, "canary"], means[kind, "never"])
        row[f"{kind} paired"] = {
            "difference": test.effect, "low": test.low, "high": test.high, "p": test.p_value, "positive": test.positive,
        }  # fmt: skip
    return row


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/canary/moons.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    cells = measure(options.nets)
    result = {"nets": options.nets, "seed": _SEED, "cells": cells, "cpu_seconds": round(time.process_time() - start)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for cell in cells:
        print(cell)


if __name__ == "__main__":
    main()
