"""The audit's rows and models in their store: made ready for a run, and asked what is still missing."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import zarr
from torch import Tensor

from fastmem.data import make_queries
from fastmem.errors import StoreError
from fastmem.signals.layout import FRESH, open_store, store_errors
from fastmem.signals.store import SignalsWriter
from fastmem.signals.stored import open_table, stored_groups
from fastmem.studies.audit.job import Cohort, Job, Table
from fastmem.studies.audit.saved import load_model, remove_others, save_model

__all__ = ["checkpoint_path", "load_saved", "missing_rows", "open_writer", "prepare_store", "save", "writer_in_task"]


def prepare_store(job: Job, may_replace: bool = True) -> bool:
    """Makes the tables that are not there, and anew those that were made for another config.

    Args:
        job: The job.
        may_replace: Whether what belongs to another config may go.

    Returns:
        Whether the rows of another config had to go.

    Raises:
        StoreError: If the store is damaged, cannot be written, or holds what may not be replaced.
    """
    tables = [table for cohort in job.cohorts.values() for table in cohort.tables]
    replaced = [_prepare_table(job, table, may_replace) for table in tables]
    if may_replace:
        with store_errors(job.store):
            root = zarr.open_group(open_store(job.store, read_only=False), mode="r+", zarr_format=3)
            for group in sorted(set(stored_groups(job.store)) - {table.group for table in tables}):
                if group in root:  # not with the group above it
                    del root[group]
        cohorts = job.cohorts.values()
        remove_others(
            job.models,
            [checkpoint_path(job, model) for each in cohorts for model in range(len(each.seeds)) if each.keeps(model)],
        )
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


def writer_in_task(job: Job, table: Table) -> SignalsWriter:
    """The same for a task, for which it must be there.

    Raises:
        StoreError: If it is not: on a node that does not see the store, rows would go to a folder of its own.
    """
    try:
        open_table(job.store, table.group)
    except StoreError as error:
        raise StoreError(
            job.store,
            f"not to be read on {socket.gethostname()} ({error.problem})",
            "give --store a folder that all nodes see, or a URL",
        ) from error
    return open_writer(job, table)


def missing_rows(job: Job, cohort: Cohort, models: Iterable[int] | None = None) -> list[int]:
    """The models whose rows are not all there, with the right keys and checksums, or whose saved copy is not.

    Args:
        job: The job.
        cohort: One of its cohorts.
        models: Which of its models to look at; None for all.
    """
    writers = [(open_writer(job, table), table.keys) for table in cohort.tables]
    return [
        model
        for model in (range(len(cohort.seeds)) if models is None else models)
        if not all(writer.is_complete(model, keys[model]) for writer, keys in writers)
        or (cohort.keeps(model) and load_saved(job, cohort, model) is None)
    ]


def checkpoint_path(job: Job, model: int) -> str:
    """Where an audited model is saved."""
    return f"{job.models}/{model:04d}.safetensors"


def load_saved(job: Job, cohort: Cohort, model: int) -> dict[str, Tensor] | None:
    """The saved state of a model, or None if it is absent, damaged or of another key."""
    return load_model(checkpoint_path(job, model), cohort.keys[model])


def save(job: Job, cohort: Cohort, model: int, state: dict[str, Tensor], about: dict[str, object]) -> None:
    """Saves a model under its key."""
    save_model(checkpoint_path(job, model), state, {"key": cohort.keys[model], **about})


def _prepare_table(job: Job, table: Table, may_replace: bool) -> bool:
    try:
        open_writer(job, table)
    except StoreError as refusal:
        try:
            open_table(job.store, table.group)
        except StoreError:
            raise refusal from None
        # It is whole, so it was refused because it belongs to another config.
        if not may_replace:
            raise StoreError(
                job.store, "holds the rows of another audit, and others may be at work on it", FRESH
            ) from None
        open_writer(job, table, fresh=True)
        return True
    return False
