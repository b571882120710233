"""Kills audits at random instants and compares what they continue to with an undisturbed one (``test_faults.py``).

By hand, with the real command, its worker processes and its report::

    python -m tests.studies.audit.audit_crash command 20 FOLDER [options of fastmem audit]

The tests use ``fork``, which kills children of one process that has loaded everything: a kill then costs a second. It
must not have run anything in threads before it forks.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_SMALL = shlex.split(
    "--pool 80 --population 40 --bystanders 40 --model-args.hidden [16] --num-models 8 --null-models 8 --workers 2 "
    "--recipe.epochs 100 --attacks loss,lira_online,rmia_online"
)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on how often a run was interrupted."""
    files = [folder / "scores.csv", folder / "report_data.npz"]
    files += sorted(path for part in ("models", "signals.zarr") for path in (folder / part).rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def kill_commands(kills: int, folder: Path, options: list[str]) -> None:
    """Starts ``fastmem audit``, kills it, and lets the same command continue; once for each kill, from nothing."""

    def start(run: Path) -> int:
        command = [sys.executable, "-m", "fastmem", "audit", *(options or _SMALL), "--out", str(run)]
        with (folder / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log).pid

    _kill(kills, folder, start)


def kill_forks(kills: int, folder: Path) -> None:
    """The same with children of this process, one process each, without the report."""
    from fastmem.studies.audit import AuditConfig, run, run_audit
    from fastmem.training import Recipe

    run.write_audit_report = lambda folder: folder / "report.html"

    def start(out: Path) -> int:
        child = os.fork()
        if child:
            return child
        try:
            run_audit(
                AuditConfig(
                    out=out,
                    pool=80,
                    population=40,
                    bystanders=40,
                    model_args={"hidden": [16]},
                    num_models=8,
                    null_models=8,
                    recipe=Recipe(epochs=20),
                    attacks="loss,lira_online,rmia_online",
                    workers=1,
                )
            )
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)

    _kill(kills, folder, start)


def _kill(kills: int, folder: Path, start: Callable[[Path], int]) -> None:
    random.seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    calm, run = folder / "calm", folder / "run"
    _finish(start(calm))  # loads what is loaded once
    expected = contents(calm)
    shutil.rmtree(calm)
    began = time.perf_counter()
    _finish(start(calm))
    duration = time.perf_counter() - began
    if contents(calm) != expected:
        raise SystemExit("two undisturbed runs differ")
    for kill in range(kills):
        shutil.rmtree(run, ignore_errors=True)
        instant = random.uniform(0.0, duration)
        child = start(run)
        time.sleep(instant)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = contents(run) if (run / "scores.csv").is_file() else {}
        rows = len(list((run / "signals.zarr").glob("commits/c/*"))) if run.is_dir() else 0
        _finish(start(run))
        same = contents(run) == expected and (not left or left == expected)
        print(
            f"kill {kill + 1} after {instant:.2f} of {duration:.2f} s, {rows} rows there: {'same' if same else 'DIFFERS'}"
        )
        if not same:
            differing = [name for name, data in contents(run).items() if expected.get(name) != data]
            raise SystemExit(f"differ: {differing}")
    print(f"{kills} kills, byte-identical every time")


def _finish(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise SystemExit(f"an audit ended with exit code {code}")


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        kill_forks(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        kill_commands(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
