"""``fastmem attack``: membership attacks on answers that are already there, without training anything.

Saved logits are reduced to the statistics that the attacks read, a model at a time, so that they need not fit into
memory; from there on it is the same as the end of an audit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from fastmem.attacks import ATTACKS, Attack, make_attack
from fastmem.engine import LocalEngine, RunFolder, content_key
from fastmem.errors import InputError, UnknownNameError
from fastmem.report.audit import write_audit_report
from fastmem.signals import Signals, SignalsWriter, stored_names
from fastmem.signals.statistics import from_logits, trailing_shape
from fastmem.studies.answer import HEADLINE_RULE, answer_sentence, control_warnings, headline_key
from fastmem.studies.attack.arrays import load_arrays
from fastmem.studies.attack.config import AttackConfig
from fastmem.studies.membership import Outcome, Tables, evaluate_stored, open_tables
from fastmem.studies.results import OUTPUTS, mask_counts, write_config, write_results, write_summary
from fastmem.studies.terminal import Terminal

__all__ = ["run_attack"]

_TRIED_RECORDS = 128
_OVERHEAD = 1 << 20  # the report and the scores of a small run


def run_attack(config: AttackConfig, terminal: Terminal | None = None) -> dict[str, Any]:
    """Runs the attacks and their controls, and writes the run's folder.

    Args:
        config: What to attack.
        terminal: Where progress is shown; by default nowhere.

    Returns:
        The summary.

    Raises:
        InputError: If an array does not fit the others, or an attack asked for cannot work with them; nothing is
            written then.
        StoreError: If the stored signals are damaged, or the run's folder cannot be written.
    """
    terminal = terminal or Terminal(quiet=True)
    with terminal.stage("prepare", 1) as advance:
        store = None if config.signals is None else _store_of(config.signals)
        given = open_tables(str(store)) if store is not None else load_arrays(config)
        targets = _targets(config, given.pool)
        attacks, left_out = _choose(config, given)
        advance(1)
    folder = RunFolder(config.run_dir)
    stats = stored_names(stat for attack in attacks.values() for stat in attack.required_stats)
    folder.require_space(_OVERHEAD + (0 if store is not None else _row_bytes(given, stats)))
    with folder.locked():
        folder.remove(OUTPUTS)
        write_config(folder.path, config)
        if store is None:
            store = folder.path / "signals.zarr"
            _reduce(store, given, stats, terminal)
        found: dict[str, Outcome] = {}
        with terminal.stage("attack", len(attacks)) as advance:
            engine = LocalEngine(config.workers or joblib.cpu_count())
            for outcome in evaluate_stored(str(store), tuple(attacks), targets, config.seed, engine):
                found[outcome.key] = outcome
                advance(1)
        with terminal.stage("report", 1) as advance:
            outcomes = [found[key] for key in attacks]
            summary = _write(config, given, targets, attacks, outcomes, left_out, terminal)
            advance(1)
        # Once more, now that the time of the report itself is known.
        summary["stages"] = dict(terminal.seconds)
        write_summary(folder.path, summary)
    return summary


def _store_of(signals: Path) -> Path:
    """The store itself, where the folder of a run was given."""
    inner = signals / "signals.zarr"
    return inner if inner.is_dir() else signals


def _targets(config: AttackConfig, pool: Signals) -> range:
    if config.targets is not None and config.targets > pool.num_models:
        raise InputError("targets", f"{config.targets}", f"there are {pool.num_models} models")
    targets = range(config.targets or pool.num_models)
    members = pool.keep[targets].sum(axis=1)
    for target, count in enumerate(members):
        if not 0 < count < pool.num_samples:
            raise InputError(
                "keep",
                f"model {target} trained on {count} of the {pool.num_samples} records",
                "a target needs members and non-members; give other models with --targets, or other records",
            )
    return targets


def _choose(config: AttackConfig, tables: Tables) -> tuple[dict[str, Attack], list[str]]:
    """The attacks to run, each tried on a few records; of ``all`` those that cannot work are left out, and named."""
    everything = config.attack_keys == ("all",)
    if not config.attack_keys:
        raise InputError("attacks", "none given", f"name some of {', '.join(ATTACKS)}, or all")
    attacks: dict[str, Attack] = {}
    refusals: dict[str, InputError] = {}
    for key in ATTACKS if everything else config.attack_keys:
        if key not in ATTACKS:
            raise UnknownNameError("attacks", key, [*ATTACKS, "all"])
        attack = make_attack(key)
        try:
            _try(attack, tables)
            attacks[key] = attack
        except InputError as error:
            refusals[key] = error
            if not everything:
                raise
    if not attacks:
        raise next(iter(refusals.values()))
    return attacks, [f"{key} was left out: {error.problem}" for key, error in refusals.items()]


def _try(attack: Attack, tables: Tables) -> None:
    """Runs an attack on some records: those with the fewest models on either side first."""
    pool, population = tables.pool, tables.population
    lacking = [stat for stat in attack.required_stats if not pool.has(stat)]
    if lacking:
        raise InputError("attacks", f"{attack.key} reads {', '.join(lacking)}, which is not stored", "give --logits")
    inside = pool.keep.sum(axis=0)
    scarce = np.argsort(np.minimum(inside, pool.num_models - inside), kind="stable")[:_TRIED_RECORDS]
    compared = population.rows(slice(_TRIED_RECORDS)) if population is not None else None
    try:
        attack(pool.rows(scarce), None, compared if attack.needs_population else None)
    except InputError:
        # Once more on everything: either it was for the few records only, or the message names the right one.
        attack(pool, None, population if attack.needs_population else None)


def _row_bytes(given: Tables, stats: tuple[str, ...]) -> int:
    values = 8 * sum(math.prod(trailing_shape(name)) for name in stats)
    tables = [table for table in (given.pool, given.population) if table is not None]
    return sum(table.keep.size * table.num_queries * values for table in tables)


def _reduce(store: Path, given: Tables, stats: tuple[str, ...], terminal: Terminal) -> None:
    """Writes the statistics that the attacks read as a signals store."""
    tables = {"": given.pool} | ({"population": given.population} if given.population is not None else {})
    with terminal.stage("reduce logits", len(tables) * given.pool.num_models) as advance:
        for group, table in tables.items():
            logits = table.logits
            assert logits is not None, "load_arrays gives tables of logits"
            writer = SignalsWriter(
                store, table.labels, table.keep, stats, num_queries=table.num_queries, group=group, fresh=True
            )
            for model, row in enumerate(logits):
                values = {name: from_logits(name, row, table.labels) for name in stats}
                writer.write_row(model, values, content_key(logits=row, labels=table.labels))
                advance(1)


def _write(
    config: AttackConfig,
    given: Tables,
    targets: range,
    attacks: Mapping[str, Attack],
    outcomes: list[Outcome],
    left_out: list[str],
    terminal: Terminal,
) -> dict[str, Any]:
    entries = {outcome.key: outcome.entry for outcome in outcomes}
    pool, references = given.pool, {key: attack.needs_references for key, attack in attacks.items()}
    own = {
        "answer": answer_sentence(entries, pool.num_models, references),
        "headline": {"attack": headline_key(entries, pool.num_models), "rule": HEADLINE_RULE},
        "data": {
            "name": str(config.signals or config.logits),
            "pool": pool.num_samples,
            "population": given.population.num_samples if given.population is not None else 0,
            "num_classes": int(pool.labels.max()) + 1,
        },
        "design": {
            "kind": "as given",
            "num_models": pool.num_models,
            "null_models": given.null.num_models if given.null is not None else 0,
            "targets": len(targets),
            **mask_counts(pool.keep, targets),
        },
        "models": {},
        "stages": dict(terminal.seconds),
        "warnings": [*left_out, *control_warnings(entries)],
    }
    index = np.arange(pool.num_samples)
    summary = write_results(config.run_dir, "attack", config, outcomes, pool.labels, index, own)
    write_audit_report(config.run_dir)
    return summary
