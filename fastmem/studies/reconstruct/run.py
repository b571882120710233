"""The reconstruction study itself: train victims, attack them, match what was found, and write the results.

A second call with the same config computes nothing that is there; an attack that was killed goes on where it last noted
its residuals.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmem.attacks.reconstruct import Run, State, reconstruct
from fastmem.attacks.reconstruct_victim import train_to_margin
from fastmem.engine import RunFolder, write_atomically
from fastmem.metrics.intervals import mean_interval
from fastmem.metrics.reconstruction import correlations, greedy_matching
from fastmem.models import count_parameters
from fastmem.ops.kkt_residual import KktNetwork
from fastmem.report.reconstruct import write_reconstruct_report
from fastmem.studies.interruption import StudyInterruptedError
from fastmem.studies.reconstruct.answer import answer_sentence, reconstruct_warnings
from fastmem.studies.reconstruct.config import ReconstructConfig
from fastmem.studies.reconstruct.evaluate import (
    CONTROLS,
    THRESHOLDS,
    Evaluation,
    agreement,
    blind_order,
    evaluate,
    oracle_order,
)
from fastmem.studies.reconstruct.pictures import contact_sheet, to_pixels
from fastmem.studies.reconstruct.plan import Part, ReconstructPlan, Victim, make_plan
from fastmem.studies.reconstruct.store import (
    FOLDERS,
    load_runs,
    load_state,
    load_victim,
    save_runs,
    save_state,
    save_victim,
    sweep_files,
)
from fastmem.studies.results import OUTPUTS, summary_of, write_arrays, write_config, write_scores, write_summary
from fastmem.studies.terminal import Terminal
from fastmem.training import load_into

__all__ = ["ReconstructResult", "run_reconstruct"]

_SAVE_SECONDS = 15.0
_NOTES = 100
_SHOWN = 60


@dataclass(frozen=True)
class ReconstructResult:
    """A finished study.

    Args:
        run_dir: Where its files are.
        summary: The content of ``summary.json``.
        iterations: Steps of attacks that this call had to take.
    """

    run_dir: Path
    summary: dict[str, Any]
    iterations: int


@dataclass(frozen=True, eq=False)
class _Attacked:
    """A victim, and what all runs found in it."""

    victim: Victim
    model: nn.Module
    training: dict[str, Any]
    runs: list[Run]
    parameters: tuple[str, ...]


def run_reconstruct(
    config: ReconstructConfig, fresh: bool = False, terminal: Terminal | None = None
) -> ReconstructResult:
    """Runs a reconstruction study, or what is left of it, and writes its folder.

    Args:
        config: What to do.
        fresh: Start over: forget what an earlier run left in the folder.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        Where the results are, and the summary.

    Raises:
        InputError: If the config does not fit the data or the machine; nothing is written then.
        StoreError: If the folder is used by another process, damaged, full or cannot be written.
        StudyInterruptedError: After Ctrl-C.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        plan = make_plan(config)
        advance(1)
    folder = RunFolder(plan.config.run_dir)
    with folder.locked():
        if fresh:
            folder.remove([*OUTPUTS, "config.yaml", "candidates.npz", *FOLDERS])
        parts = {victim.name: plan.parts(victim) for victim in plan.victims}
        if sweep_files(folder.path, plan.victims, [one for each in parts.values() for one in each], _own(plan)):
            terminal.say(f"{folder.path} held files of another reconstruction; they are replaced")
            folder.remove([*OUTPUTS, "candidates.npz", "candidates"])
        write_config(folder.path, plan.config)
        try:
            attacked, iterations = _attack_all(plan, parts, folder, terminal)
        except KeyboardInterrupt as interrupt:
            raise StudyInterruptedError(f"what was done is kept in {folder.path}") from interrupt
        summary = _write(plan, attacked, terminal)
    return ReconstructResult(folder.path, summary, iterations)


def _own(plan: ReconstructPlan) -> bool:
    return plan.config.checkpoint is not None


# ----------------------------------------------------------------------------------------------------- train and attack


def _attack_all(
    plan: ReconstructPlan, parts: dict[str, list[Part]], folder: RunFolder, terminal: Terminal
) -> tuple[list[_Attacked], int]:
    models = [_model(plan, victim, folder, terminal) for victim in plan.victims]
    total = sum(part.settings[0].iterations for each in parts.values() for part in each)
    attacked, taken = [], 0
    with terminal.stage("attack", total) as advance:
        for victim, (model, training) in zip(plan.victims, models, strict=True):
            network = KktNetwork.of(model, _targets(plan, victim, model))
            runs: list[Run] = []
            parameters: tuple[str, ...] = ()
            for part in parts[victim.name]:
                found, parameters, steps = _attack(plan, network, part, folder.path, advance)
                runs += found
                taken += steps
            attacked.append(_Attacked(victim, model, training, runs, parameters))
    return attacked, taken


def _model(
    plan: ReconstructPlan, victim: Victim, folder: RunFolder, terminal: Terminal
) -> tuple[nn.Module, dict[str, Any]]:
    """The network to attack, trained here if it is not there."""
    if _own(plan):
        return plan.own_network(), {}
    model = plan.network(victim)
    saved = load_victim(folder.path, victim)
    if saved is not None:
        load_into(model, saved[0])
        return model.eval(), saved[1]
    folder.remove(OUTPUTS)  # the old results would describe another victim
    assert victim.records is not None, "victims know their records"
    x = plan.pixels(victim.records) - plan.mean(victim)
    y = plan.labels[torch.from_numpy(victim.records)]
    y = y if plan.outputs > 1 else y.to(plan.dtype)
    with terminal.stage("train", 100) as advance:
        done, first = 0, math.nan

        def note(epoch: int, loss: float) -> None:
            """Percent of the steps, or of the way down to the loss that ends the training: in decades."""
            nonlocal done, first
            first = loss if math.isnan(first) else first
            way = math.log(first / max(loss, 1e-300)) / math.log(first / plan.training.stop_loss)
            share = max(way if plan.training.reaches_margin else 0.0, epoch / plan.training.max_epochs)
            percent = max(done, min(99, int(100 * share)))
            advance(percent - done)
            done = percent

        report = train_to_margin(model, x.to(plan.device), y.to(plan.device), plan.training, note)
        advance(100 - done)
    save_victim(folder.path, victim, model.state_dict(), vars(report))
    return model.eval(), vars(report)


def _targets(plan: ReconstructPlan, victim: Victim, model: nn.Module) -> dict[str, Tensor] | None:
    """What gradients should add up to: None for the weights; else their difference from the initial ones."""
    if not plan.config.from_initial:
        return None
    before = dict(plan.network(victim).named_parameters())
    return {name: (value - before[name]).detach() for name, value in model.named_parameters()}


def _attack(
    plan: ReconstructPlan, network: KktNetwork, part: Part, folder: Path, advance: Any
) -> tuple[list[Run], tuple[str, ...], int]:
    saved = load_runs(folder, part)
    iterations = part.settings[0].iterations
    if saved is not None:
        advance(iterations)
        return saved[0], saved[1], 0
    state = load_state(folder, part, plan.device)
    begun = shown = 0 if state is None else state.iteration
    advance(begun)
    last_saved = time.monotonic()

    def note(now: State) -> None:
        nonlocal shown, last_saved
        advance(now.iteration - shown)
        shown = now.iteration
        if time.monotonic() - last_saved > _SAVE_SECONDS:
            save_state(folder, part, now)
            last_saved = time.monotonic()

    found = reconstruct(
        network,
        None,
        part.settings,
        sample_shape=plan.dataset.input_shape,
        labels=part.labels,
        log_every=max(1, iterations // _NOTES),
        state=state,
        on_log=note,
    )
    advance(iterations - shown)
    save_runs(folder, part, found.runs, found.parameters)
    return list(found.runs), found.parameters, iterations - begun


# ---------------------------------------------------------------------------------------------------------- the results


def _write(plan: ReconstructPlan, attacked: list[_Attacked], terminal: Terminal) -> dict[str, Any]:
    config = plan.config
    with terminal.stage("match", len(attacked)) as advance:
        entries: list[dict[str, Any]] = []
        evaluations: list[Evaluation] = []
        chosen: list[int] = []
        for one in attacked:
            entry, best, evaluation = _entry(plan, one)
            entries.append(entry)
            chosen.append(best)
            if evaluation is not None:
                evaluations.append(evaluation)
            advance(1)
    with terminal.stage("report", 1) as advance:
        _write_candidates(plan, attacked, chosen)
        if evaluations:
            columns = [evaluation.rows for evaluation in evaluations]
            write_scores(config.run_dir, {name: np.concatenate([c[name] for c in columns]) for name in columns[0]})
        else:
            write_scores(config.run_dir, _blind_rows(attacked, chosen))
        write_arrays(config.run_dir, _arrays(plan, attacked, chosen, evaluations))
        runs = len(attacked[0].runs)
        total = _total([evaluation.entry for evaluation in evaluations]) if evaluations else None
        m = attacked[0].runs[0].x.shape[0]
        summary = summary_of(
            "reconstruct",
            config,
            {
                "answer": answer_sentence(total, config.n, len(attacked), m, runs),
                "total": total,
                "victims": entries,
                "design": {
                    "n": config.n,
                    "m": m,
                    "runs": runs,
                    "rank": config.rank,
                    "iterations": attacked[0].runs[0].settings.iterations,
                    "settings": vars(attacked[0].runs[chosen[0]].settings),
                    "thresholds": list(THRESHOLDS),
                },
                "controls": CONTROLS,
                "data": {
                    "name": plan.dataset.name,
                    "fingerprint": plan.dataset.fingerprint(),
                    "input_shape": list(plan.dataset.input_shape),
                    "is_image": plan.dataset.is_image,
                },
                "models": {"name": config.model, "parameters": count_parameters(attacked[0].model)},
                "stages": dict(terminal.seconds),
                "warnings": reconstruct_warnings(entries, runs, config.rank, config.schedule),
            },
        )
        write_summary(config.run_dir, summary)
        write_reconstruct_report(config.run_dir)
        advance(1)
    return summary


def _entry(plan: ReconstructPlan, one: _Attacked) -> tuple[dict[str, Any], int, Evaluation | None]:
    """A victim's entry of the summary, the run that is shown, and its evaluation where that can be had."""
    order = blind_order(one.runs)
    best = order[0]
    known = one.victim.records is not None
    train = plan.pixels(one.victim.records) - plan.mean(one.victim) if one.victim.records is not None else None
    oracle = oracle_order(one.runs, train)[0] if train is not None else None
    if plan.config.rank == "oracle" and oracle is not None:
        best = oracle
    run = one.runs[best]
    shares = agreement(one.runs)[best]
    entry: dict[str, Any] = {
        "name": one.victim.name,
        "training": one.training,
        "shown": best,
        "oracle": oracle,
        "diverged": sum(run.diverged is not None for run in one.runs),
        "residuals": dict(zip(one.parameters, run.residuals[-1].tolist(), strict=True)) if len(run.residuals) else {},
        "agreement": None if np.isnan(shares).all() else float(np.mean(shares)),
        "runs": [{"residual": each.loss, "diverged": each.diverged, "seed": each.settings.seed} for each in one.runs],
    }
    if not known or train is None:
        return entry, best, None
    evaluation = evaluate(plan, one.victim, one.model, run)
    entry |= evaluation.entry
    if len(one.runs) > 1:
        means = [greedy_matching(correlations(train, each.x)) for each in one.runs]
        for each, matching in zip(entry["runs"], means, strict=True):
            each |= {"oracle_mean": matching.mean, "oracle_above": matching.count(0.8)}
        union = greedy_matching(correlations(train, torch.cat([each.x for each in one.runs])))
        entry["union"] = {"mean": union.mean, "above": {f"{t:g}": union.count(t) for t in THRESHOLDS}}
    return entry, best, evaluation


def _total(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over victims with their intervals; differences from the controls, victim by victim."""

    def over(values: list[float]) -> dict[str, float]:
        return vars(mean_interval(values))

    def counts(parts: list[dict[str, Any]]) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "mean": over([part["mean"] for part in parts]),
            "above": {name: over([part["above"][name] for part in parts]) for name in parts[0]["above"]},
        }
        if "ssim" in parts[0]:
            entry["ssim"] = {name: over([part["ssim"][name] for part in parts]) for name in parts[0]["ssim"]}
        return entry

    attack = [entry["attack"] for entry in entries]
    total: dict[str, Any] = {
        "attack": counts(attack),
        "controls": {},
        "held_out": counts([entry["held_out"] for entry in entries]),
        "excess": {},
        "p_held_out": [entry["p_held_out"] for entry in entries],
        "p_first_layer": [entry["p_first_layer"] for entry in entries],
        "p_first_layer_all": [entry["p_first_layer_all"] for entry in entries],
    }
    for name in entries[0]["controls"]:
        control = [entry["controls"][name] for entry in entries]
        total["controls"][name] = counts(control)
        total["excess"][name] = {
            "mean": over([a["mean"] - c["mean"] for a, c in zip(attack, control, strict=True)]),
            "above": {
                t: over([a["above"][t] - c["above"][t] for a, c in zip(attack, control, strict=True)])
                for t in attack[0]["above"]
            },
        }
    return total


def _write_candidates(plan: ReconstructPlan, attacked: list[_Attacked], chosen: list[int]) -> None:
    """All candidates of all runs as ``candidates.npz``; those of the shown runs as pictures too."""
    arrays: dict[str, np.ndarray] = {}
    for one, best in zip(attacked, chosen, strict=True):
        arrays[f"{one.victim.name}__x"] = np.stack([run.x.cpu().numpy() for run in one.runs])
        arrays[f"{one.victim.name}__multipliers"] = np.stack([run.multipliers.cpu().numpy() for run in one.runs])
        arrays[f"{one.victim.name}__labels"] = np.stack([run.labels.numpy() for run in one.runs])
        arrays[f"{one.victim.name}__mean"] = plan.mean(one.victim).cpu().numpy()
        arrays[f"{one.victim.name}__shown"] = np.array(best)
    with write_atomically(plan.config.run_dir / "candidates.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    if not plan.dataset.is_image:
        return
    folder = plan.config.run_dir / "candidates"
    folder.mkdir(exist_ok=True)
    for one, best in zip(attacked, chosen, strict=True):
        pixels = to_pixels(one.runs[best].x.cpu() + plan.mean(one.victim).cpu())
        with write_atomically(folder / f"{one.victim.name}.png") as temporary:
            contact_sheet(pixels).save(temporary, format="PNG")


def _blind_rows(attacked: list[_Attacked], chosen: list[int]) -> dict[str, np.ndarray]:
    """What can be said of candidates without the training set."""
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("victim", "candidate", "label", "multiplier", "agreement", "output")
    }
    for one, best in zip(attacked, chosen, strict=True):
        run = one.runs[best]
        m = len(run.x)
        with torch.no_grad():
            device = next(one.model.parameters()).device
            outputs = one.model(run.x.to(device)).reshape(m, -1).cpu()
        columns["victim"].append(np.full(m, one.victim.name))
        columns["candidate"].append(np.arange(m))
        columns["label"].append(run.labels.numpy())
        columns["multiplier"].append(run.multipliers.cpu().numpy())
        columns["agreement"].append(agreement(one.runs)[best])
        columns["output"].append(outputs.abs().amax(1).numpy())
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _arrays(
    plan: ReconstructPlan, attacked: list[_Attacked], chosen: list[int], evaluations: list[Evaluation]
) -> dict[str, np.ndarray]:
    """What the report draws: the first victim's pictures, best first, and every victim's residual curves."""
    first = attacked[0]
    run = first.runs[chosen[0]]
    arrays: dict[str, np.ndarray] = {
        "parameters": np.array(first.parameters),
        "steps": run.steps,
        "residuals": run.residuals,
        "run_losses": np.array([each.loss for each in first.runs]),
    }
    if not plan.dataset.is_image:
        return arrays
    if not evaluations:
        return arrays | {"candidate_picture": to_pixels(run.x.cpu() + plan.mean(first.victim).cpu())[:_SHOWN]}
    evaluation = evaluations[0]
    order = np.argsort(-np.nan_to_num(evaluation.matching.similarity, nan=-2), kind="stable")[:_SHOWN]
    victim = first.victim
    assert victim.records is not None, "an evaluation has records"
    arrays |= {
        "shown_record": victim.records[order],
        "shown_label": plan.labels[torch.from_numpy(victim.records)].numpy()[order],
        "train_picture": to_pixels(plan.pixels(victim.records).cpu())[order],
    }
    for name, pictures in evaluation.pictures.items():
        arrays[f"picture__{name}"] = to_pixels(pictures)[order]
        matching = evaluation.matching if name == "attack" else evaluation.controls[name]
        arrays[f"correlation__{name}"] = matching.similarity[order]
    # As many held-out images, each with its nearest candidate: what resemblance by chance looks like.
    return arrays | _held_out_arrays(plan, victim, run)


def _held_out_arrays(plan: ReconstructPlan, victim: Victim, run: Run) -> dict[str, np.ndarray]:
    mean = plan.mean(victim).cpu()
    assert victim.records is not None
    some = victim.held_out[np.random.default_rng([plan.config.seed, 47]).permutation(len(victim.held_out))]
    some = some[: min(len(victim.records), _SHOWN)]
    similarity = correlations(plan.pixels(some).cpu() - mean, run.x)
    order = np.argsort(-similarity.max(1), kind="stable")
    nearest = similarity.argmax(1)[order]
    return {
        "held_out_picture": to_pixels(plan.pixels(some).cpu())[order],
        "held_out_candidate": to_pixels(run.x.cpu()[torch.from_numpy(nearest)] + mean),
        "held_out_correlation": similarity.max(1)[order],
    }
