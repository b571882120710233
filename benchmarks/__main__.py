"""Run the benchmarks and write ``benchmarks/results/<machine>/``: ``make bench`` or ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import machine
from benchmarks.table import BUSY, render, update_readme

_HERE = Path(__file__).parent
_SUITES = sorted(path.stem.removeprefix("test_") for path in _HERE.glob("test_*.py"))


def main() -> int:
    """Measure, then render; returns the exit status."""
    options = _options()
    load = machine.other_load(2.0)
    if load > BUSY and not options.busy:
        print(
            f"Other processes use {load:.1f} cores of this machine, so ratios would mislead. "
            "Wait until it is quiet, or measure all the same with --busy (every row then says so).",
            file=sys.stderr,
        )
        return 2
    folder = options.out or _HERE / "results" / machine.folder_name(options.device)
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.json"
    arguments = [
        *(str(_HERE / f"test_{suite}.py") for suite in options.suite or _SUITES),
        "-q",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "--benchmark-only",
        "--benchmark-disable-gc",
        "--benchmark-columns=median,min,rounds",
        "--benchmark-save-data",
        f"--benchmark-json={raw}",
        f"--bench-device={options.device}",
        f"--bench-threads={options.threads}",
        f"--bench-seconds={options.seconds}",
        f"--bench-only={options.only}",
    ]
    status = pytest.main(arguments)
    if not raw.exists():
        print("Nothing was measured: no case has a name like that.", file=sys.stderr)
        return 2
    if status == 0:
        print(render(raw, folder, device=options.device))
        if options.readme:
            update_readme(_HERE.parent / "README.md", folder)
    raw.unlink(missing_ok=True)
    return int(status)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", default="1,2", help="thread counts on a CPU (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="seconds a contestant and lap (default: %(default)s)"
    )
    parser.add_argument("--suite", action="append", choices=_SUITES, help="only this suite; may be repeated")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    parser.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/results/<machine>)")
    parser.add_argument("--busy", action="store_true", help="measure although other processes use the machine")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
