"""What was recovered of a victim's training images, with the same counts of everything that never attacked it.

All similarities are correlations of images with the training mean subtracted, pairs are one to one
(:mod:`fastmem.metrics.reconstruction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.attacks.reconstruct import Run
from fastmem.metrics.reconstruction import (
    Matching,
    best_similarities,
    correlations,
    greedy_matching,
    image_ssim,
    membership_permutation,
    ncc,
    paired_sign_flips,
)
from fastmem.studies.reconstruct.plan import ReconstructPlan, Victim

__all__ = ["CONTROLS", "THRESHOLDS", "Evaluation", "agreement", "blind_order", "evaluate", "oracle_order"]

THRESHOLDS = (0.5, 0.8, 0.9)
SSIM_THRESHOLD = 0.4
PERMUTATIONS = 9999
#: Candidates that cost no attack, with what people call them.
CONTROLS = {
    "first_layer": "First-layer rows, as many as candidates (largest norms)",
    "first_layer_all": "First-layer rows, all of them",
    "untrained": "First-layer rows before training, as many",
    "random": "Random candidates",
    "mean": "Mean image",
}
_ALIKE = 0.9
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of one victim.

    Attributes:
        entry: For the summary.
        matching: Of the attack's candidates.
        controls: Of the controls, by key.
        pictures: Of each training image the matched candidate of the attack and of each control, pixels [n, ...].
        rows: Columns for scores.csv.
    """

    entry: dict[str, Any]
    matching: Matching
    controls: dict[str, Matching]
    pictures: dict[str, Tensor]
    rows: dict[str, np.ndarray]


def blind_order(runs: Sequence[Run]) -> list[int]:
    """Runs by their last residual, the smallest first, those that diverged last: no training image enters."""
    losses = [np.inf if run.diverged else run.loss for run in runs]
    return list(np.argsort(losses, kind="stable"))


def agreement(runs: Sequence[Run]) -> list[np.ndarray]:
    """Of each run's candidates, the share of the other runs that have one like it (correlation above 0.9).

    Candidates that come back from other starts and settings are clusters across runs, which Oz et al. 2024
    (arXiv:2407.15845) find to be training images without knowing any.
    """
    if len(runs) < 2:
        return [np.full(len(run.x), np.nan) for run in runs]
    shares = [np.zeros(len(run.x)) for run in runs]
    for a in range(len(runs)):
        for b in range(a + 1, len(runs)):
            like = correlations(runs[a].x, runs[b].x) > _ALIKE
            shares[a] += like.any(1)
            shares[b] += like.any(0)
    return [share / (len(runs) - 1) for share in shares]


def oracle_order(runs: Sequence[Run], train: Tensor) -> list[int]:
    """Runs by the mean correlation of training images with their candidates, the best first: needs the training set."""
    means = [greedy_matching(correlations(train, run.x)).mean for run in runs]
    return list(np.argsort([-np.inf if np.isnan(mean) else -mean for mean in means], kind="stable"))


def evaluate(plan: ReconstructPlan, victim: Victim, model: nn.Module, run: Run) -> Evaluation:
    """Matches a run's candidates, and every control's, with the victim's training images.

    Args:
        plan: The plan.
        victim: One whose training records are known.
        model: The trained network.
        run: The run that is shown.
    """
    assert victim.records is not None, "nothing can be counted without the training records"
    mean = plan.mean(victim).cpu()
    pixels = plan.pixels(victim.records).cpu()
    train, held_out = pixels - mean, plan.pixels(victim.held_out).cpu() - mean
    found = run.x.cpu()
    similarity = correlations(train, found)
    matching = greedy_matching(similarity)
    null = correlations(held_out, found)
    sets = {"attack": found} | _controls(plan, victim, model, run)
    matchings = {name: greedy_matching(correlations(train, candidates)) for name, candidates in sets.items()}
    shown = {
        name: candidates if name in ("attack", "mean") else _contrast(candidates, train)
        for name, candidates in sets.items()
    }
    pictures = {name: _matched(shown[name], matchings[name]) + mean for name in sets}
    entries = {name: _counts(plan, pixels, pictures[name], matchings[name]) for name in sets}
    best = best_similarities(similarity)
    entry = {
        "name": victim.name,
        "attack": entries.pop("attack"),
        "controls": entries,
        "held_out": _held_out(null, len(train), plan.config.seed) | _nearest(similarity, null),
        "p_held_out": membership_permutation(best, best_similarities(null), PERMUTATIONS, plan.config.seed),
        "p_first_layer": paired_sign_flips(
            matching.similarity, matchings["first_layer"].similarity, PERMUTATIONS, plan.config.seed
        ),
        "p_first_layer_all": paired_sign_flips(
            matching.similarity, matchings["first_layer_all"].similarity, PERMUTATIONS, plan.config.seed
        ),
    }
    controls = {name: matchings[name] for name in matchings if name != "attack"}
    return Evaluation(
        entry, matching, controls, pictures, _rows(plan, victim, matching, controls, pixels, pictures, found, train)
    )


def _controls(plan: ReconstructPlan, victim: Victim, model: nn.Module, run: Run) -> dict[str, Tensor]:
    """Candidates that cost no attack, by key."""
    m, shape = run.x.shape[0], run.x.shape[1:]
    sets: dict[str, Tensor] = {}
    values = run.x[0].numel()
    rows = _first_layer(model, values)
    if rows is not None:
        order = rows.norm(dim=1).argsort(descending=True, stable=True)[:m]
        sets["first_layer"] = rows[order].reshape(-1, *shape)
        sets["first_layer_all"] = rows.reshape(-1, *shape)
        before = _first_layer(plan.network(victim), values)
        if before is not None and plan.config.checkpoint is None:
            sets["untrained"] = before[:m].reshape(-1, *shape)
    generator = torch.Generator().manual_seed(plan.config.seed + 1)
    sets["random"] = torch.randn(m, *shape, generator=generator, dtype=torch.float64).to(run.x.dtype)
    # As many as images, so that one to one costs it nothing.
    assert victim.records is not None
    sets["mean"] = torch.zeros(len(victim.records), *shape, dtype=run.x.dtype)
    return sets


def _first_layer(model: nn.Module, values: int) -> Tensor | None:
    """The rows of the first layer that sees whole samples."""
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.shape[1] == values:
            return parameter.detach().cpu()
    return None


def _matched(candidates: Tensor, matching: Matching) -> Tensor:
    """The matched candidate of each image, the mean image (0) where there is none."""
    chosen = candidates[torch.from_numpy(matching.candidate.clip(min=0))].clone()
    chosen[torch.from_numpy(matching.candidate < 0)] = 0
    return chosen


def _contrast(candidates: Tensor, train: Tensor) -> Tensor:
    """Candidates with the mean contrast of training images: a row of weights has none of its own, and no SSIM without."""
    wanted, has = (values.flatten(1).norm(dim=1) for values in (train, candidates))
    scale = wanted.mean().to(candidates.dtype) / has.clamp(min=1e-30)
    return candidates * scale.view(-1, *([1] * (candidates.ndim - 1)))


def _counts(plan: ReconstructPlan, pixels: Tensor, shown: Tensor, matching: Matching) -> dict[str, Any]:
    values = np.nan_to_num(matching.similarity)
    entry: dict[str, Any] = {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "above": {f"{threshold:g}": matching.count(threshold) for threshold in THRESHOLDS},
    }
    if plan.dataset.is_image:
        clamped, minmax = (image_ssim(pixels, shown, how) for how in ("clamp", "minmax"))
        entry["ssim"] = {
            "mean": float(clamped.mean()),
            "above": int((clamped > SSIM_THRESHOLD).sum()),
            "mean_minmax": float(minmax.mean()),
            "above_minmax": int((minmax > SSIM_THRESHOLD).sum()),
        }
    return entry


def _held_out(null: np.ndarray, n: int, seed: int) -> dict[str, Any]:
    """The same one-to-one counts with held-out images in the place of training images, over many draws of as many."""
    size = min(n, len(null))
    rng = np.random.default_rng([seed, 43])
    draws = [greedy_matching(null[rng.permutation(len(null))[:size]]) for _ in range(_DRAWS)]
    counts = {f"{threshold:g}": [draw.count(threshold) * n / size for draw in draws] for threshold in THRESHOLDS}
    return {
        "images": len(null),
        "draws": _DRAWS,
        "mean": float(np.mean([draw.mean for draw in draws])),
        "above": {name: float(np.mean(values)) for name, values in counts.items()},
        "above_97.5": {name: float(np.quantile(values, 0.975)) for name, values in counts.items()},
    }


def _nearest(similarity: np.ndarray, null: np.ndarray) -> dict[str, Any]:
    """Of candidates that resemble some image, how many resemble a training image most."""
    together = np.concatenate([similarity, null])
    nearest, value = together.argmax(0), together.max(0)
    close = value > 0.5
    trained = close & (nearest < len(similarity))
    return {
        "candidates_alike": int(close.sum()),
        "nearest_is_train": int(trained.sum()),
        "distinct_train": len(np.unique(nearest[trained])),
        "chance": len(similarity) / len(together),
    }


def _rows(
    plan: ReconstructPlan,
    victim: Victim,
    matching: Matching,
    controls: dict[str, Matching],
    pixels: Tensor,
    pictures: dict[str, Tensor],
    found: Tensor,
    train: Tensor,
) -> dict[str, np.ndarray]:
    assert victim.records is not None
    n = len(victim.records)
    cross = ncc(train, found)
    rows: dict[str, np.ndarray] = {
        "victim": np.full(n, victim.name),
        "record": victim.records,
        "label": plan.labels[torch.from_numpy(victim.records)].numpy(),
        "candidate": matching.candidate,
        "correlation": matching.similarity,
        "ncc": cross[np.arange(n), matching.candidate.clip(min=0)],
    }
    if plan.dataset.is_image:
        rows["ssim"] = image_ssim(pixels, pictures["attack"])
        rows["ssim_minmax"] = image_ssim(pixels, pictures["attack"], "minmax")
    for name, control in controls.items():
        rows[f"{name}_correlation"] = control.similarity
    order = np.argsort(-np.nan_to_num(matching.similarity, nan=-2), kind="stable")
    return {name: column[order] for name, column in rows.items()}
