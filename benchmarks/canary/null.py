"""Is the paired test's p-value uniform where there is nothing to find? ``python -m benchmarks.canary.null``.

40 tests of 20 pairs of perceptrons on scikit-learn's digits. The two models of a pair differ in their seed alone and
neither saw the mark, so each test is one draw from the null. Beside: how often the papers' image-level tests reject for
the same 1,600 models, over all ten labels that the canary could have had. The seed was fixed before the first run.
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
from scipy import stats

from fastmem.data import load_dataset, load_feature, random_patches, split_records
from fastmem.metrics import (
    LABEL_VARIANTS,
    Answers,
    clopper_pearson,
    image_tests,
    memorisation_test,
    rank_p_value,
    score_features,
)
from fastmem.models import build_model
from fastmem.signals.query import query_model
from fastmem.training import Recipe, train_models

_SEED = 2022
_VARIANTS = ("log_ratio", "kl_contrast", "prob_diff")
_LABEL = 3
_PACK = 40


def measure(tests: int, pairs: int) -> dict[str, Any]:
    """p-values of every test, and the shares of models that image-level tests reject."""
    split = split_records(load_dataset("digits"), 500, 297, 0, _SEED)
    assert split.population is not None
    feature, images = load_feature("A3"), split.population.x
    patched = feature.apply(images, random_patches(feature, len(images), _SEED))
    normalisation = split.pool.channel_stats()
    build = functools.partial(build_model, "mlp", (1, 8, 8), 10, hidden=(32,))
    keep, nothing = np.ones((_PACK, 500), dtype=bool), torch.zeros(len(images), dtype=torch.int64)
    values: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    rejected: dict[str, list[bool]] = {f"{name} {test}": [] for name in _VARIANTS for test in ("t", "mann_whitney")}
    total = 2 * tests * pairs
    for first in range(0, total, _PACK):
        seeds = [_SEED * 1_000_003 + first + place for place in range(_PACK)]
        recipe = Recipe(epochs=25)
        for result in train_models(build, split.pool.x, split.pool.y, keep, recipe, seeds, normalisation):
            network = build(seed=0)
            network.load_state_dict(result.state)
            shown = [lambda x: x, feature.apply]
            marked = query_model(network, images, nothing, shown, ["logits"], normalisation)["logits"]
            contrast = query_model(network, patched, nothing, shown[:1], ["logits"], normalisation)["logits"]
            answers = Answers.of(marked[:, 0], marked[:, 1][None], contrast[:, 0], from_logits=True)
            for name in _VARIANTS:
                values[name].append(float(score_features(answers, name, _LABEL).value[0]))
                # Whether a mark moves answers towards a label depends on the label: all of them, a test each.
                for label in range(10) if name in LABEL_VARIANTS else (_LABEL,):
                    score = score_features(answers, name, label)
                    for test, p in image_tests(score.with_feature, score.without_feature).items():
                        rejected[f"{name} {test}"].append(p <= 0.05)
    found: dict[str, Any] = {}
    for name in _VARIANTS:
        scores = np.array(values[name]).reshape(tests, 2, pairs)
        results = [memorisation_test(observed, null) for observed, null in scores]
        ranks = [rank_p_value(observed[0], null) for observed, null in scores]
        found[name] = {
            "wilcoxon": _uniform([result.p_value for result in results]),
            "sign_flip": _uniform([result.p_sign_flip for result in results]),
            "rank_p_at_most_0.05": _share([p <= 0.05 for p in ranks]),
            "image_t_at_most_0.05": _share(rejected[f"{name} t"]),
            "image_mann_whitney_at_most_0.05": _share(rejected[f"{name} mann_whitney"]),
        }
    return {"seed": _SEED, "tests": tests, "pairs": pairs, "models": total, "variants": found}


def _uniform(p: list[float]) -> dict[str, Any]:
    return {
        "ks_p": float(stats.kstest(p, "uniform").pvalue),
        "at_most_0.05": _share([each <= 0.05 for each in p]),
        "at_most_0.1": _share([each <= 0.1 for each in p]),
        "p_values": sorted(round(each, 4) for each in p),
    }


def _share(found: list[bool]) -> dict[str, float]:
    low, high = clopper_pearson(sum(found), len(found))
    return {
        "share": sum(found) / len(found),
        "n": len(found),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/canary/null.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    result: dict[str, Any] = measure(options.tests, options.pairs) | {"cpu_seconds": round(time.process_time() - start)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    variants: dict[str, Any] = result["variants"]
    for name, entry in variants.items():
        print(name, {key: entry["wilcoxon"][key] for key in ("ks_p", "at_most_0.05")}, entry["image_t_at_most_0.05"])


if __name__ == "__main__":
    main()
