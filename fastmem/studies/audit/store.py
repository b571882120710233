"""The audit's rows and models on disk: made ready for a run, and asked what is still missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from torch import Tensor

from fastmem.data import make_queries
from fastmem.errors import StoreError
from fastmem.signals.store import SignalsWriter
from fastmem.signals.stored import open_table, stored_groups
from fastmem.studies.audit.job import Cohort, Job, Table
from fastmem.training import load_checkpoint

__all__ = ["METADATA", "checkpoint_path", "load_saved", "missing_rows", "open_writer", "prepare_store"]

# Where a saved model says what it is.
METADATA = "fastmem_audit"


def prepare_store(job: Job) -> bool:
    """Makes the tables that are not there, and anew those that were made for another config.

    Returns:
        Whether the rows of another config had to go.

    Raises:
        StoreError: If the store is damaged, or cannot be written.
    """
    tables = [table for cohort in job.cohorts.values() for table in cohort.tables]
    replaced = [_prepare_table(job, table) for table in tables]
    for group in set(stored_groups(job.store)) - {table.group for table in tables}:
        shutil.rmtree(Path(job.store) / group, ignore_errors=True)
    expected = {
        checkpoint_path(job, model) for c in job.cohorts.values() if c.keep_models for model in range(len(c.seeds))
    }
    for path in Path(job.models).glob("*.safetensors"):
        if path not in expected:
            path.unlink()
    return any(replaced)


def open_writer(job: Job, table: Table, fresh: bool = False) -> SignalsWriter:
    """The table's place in the store, made if it is not there."""
    return SignalsWriter(
        job.store,
        table.y,
        table.keep,
        job.arrays,
        num_queries=len(make_queries(job.queries)),
        num_classes=job.num_classes,
        group=table.group,
        fresh=fresh,
    )


def missing_rows(job: Job, cohort: Cohort) -> list[int]:
    """The models whose rows are not all there, with the right keys and checksums, or whose saved copy is not."""
    done = np.ones(len(cohort.seeds), dtype=bool)
    for table in cohort.tables:
        done &= open_writer(job, table).completed(table.keys)
    if cohort.keep_models:
        done &= [load_saved(job, cohort, model) is not None for model in range(len(done))]
    return np.flatnonzero(~done).tolist()


def checkpoint_path(job: Job, model: int) -> Path:
    """Where a shadow model is saved."""
    return Path(job.models) / f"{model:04d}.safetensors"


def load_saved(job: Job, cohort: Cohort, model: int) -> dict[str, Tensor] | None:
    """The saved state of a model, or None if it is absent, damaged or of another key."""
    try:
        state, metadata = load_checkpoint(checkpoint_path(job, model))
    except StoreError:
        return None
    about = json.loads(metadata.get(METADATA, "{}"))
    return state if about.get("key") == cohort.keys[model] else None


def _prepare_table(job: Job, table: Table) -> bool:
    try:
        open_writer(job, table)
    except StoreError as refusal:
        try:
            open_table(job.store, table.group)
        except StoreError:
            raise refusal from None
        # It is whole, so it was refused because it belongs to another config.
        open_writer(job, table, fresh=True)
        return True
    return False
