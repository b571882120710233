"""Run as a script: a parent that kills children which write rows, at random instants (see ``test_store.py``).

It forks, so that a child costs milliseconds, and it must not have used zarr itself before it does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from fastmem.signals.store import SignalsWriter

ROWS, SAMPLES, QUERIES = 24, 500, 2
KEYS = [f"{row:064x}" for row in range(ROWS)]
OTHER_KEYS = [f"{row:063x}f" for row in range(ROWS)]  # of another config


def writer(folder: Path) -> SignalsWriter:
    """The table that all processes write to."""
    rng = np.random.default_rng(0)
    labels, keep = rng.integers(0, 10, SAMPLES), rng.random((ROWS, SAMPLES)) < 0.5
    return SignalsWriter(folder, labels, keep, ["margin", "top3"], num_queries=QUERIES)


def row(number: int, config: int = 0) -> dict[str, np.ndarray]:
    """What model ``number`` of a config says."""
    rng = np.random.default_rng([config, number])
    return {"margin": rng.normal(size=(SAMPLES, QUERIES)), "top3": rng.random((SAMPLES, QUERIES, 3))}


def write_missing(folder: Path, part: slice = slice(None)) -> None:
    """What a run does: write the rows that are not there."""
    table = writer(folder)
    for number in np.flatnonzero(~table.completed(KEYS))[part]:
        table.write_row(int(number), row(int(number)), KEYS[number])


def write_all(folder: Path, config: int) -> None:
    """Write every row as one of two configs has it, over whatever is there."""
    table = writer(folder)
    for number in np.random.default_rng(os.getpid()).permutation(ROWS):
        table.write_row(int(number), row(int(number), config), (OTHER_KEYS if config else KEYS)[number])


def forked(work, *arguments) -> int:
    """Do ``work`` in a child; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def kill_at_random(folder: Path, kills: int) -> None:
    """Children of two configs write; each is killed somewhere between its start and its end, so also making the table."""
    random.seed(0)
    started = time.perf_counter()
    os.waitpid(forked(write_all, folder.with_name("undisturbed"), 0), 0)
    duration = time.perf_counter() - started
    for kill in range(kills):
        child = forked(write_all, folder, kill % 2)
        time.sleep(random.uniform(0.0, duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def write_at_once(folder: Path, processes: int) -> None:
    """Several children make the same table and write different rows at the same time."""
    children = [forked(write_missing, folder, slice(part, None, processes)) for part in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"exit codes {codes}")


if __name__ == "__main__":
    {"kill": kill_at_random, "race": write_at_once}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
