"""The benchmark session: options, threads, laps, and what every row must say about itself.

Contestants of one case run one after another in several laps, and the table pools the laps: a machine that slows down
for a second then slows every contestant.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.cases import Case, Contestant

LAPS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``python -m benchmarks``."""
    parser.addoption("--bench-device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--bench-threads", default="1,2")
    parser.addoption("--bench-seconds", type=float, default=0.5, help="seconds a contestant and lap")
    parser.addoption("--bench-only", default="", help="run the cases whose name contains this")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each (threads, case, lap, contestant), in that order."""
    if "contestant" not in metafunc.fixturenames:
        return
    device = str(metafunc.config.getoption("--bench-device"))
    only = str(metafunc.config.getoption("--bench-only"))
    threads = [int(count) for count in str(metafunc.config.getoption("--bench-threads")).split(",")]
    module: Any = metafunc.module
    rows = [
        pytest.param(count, case, lap, contestant, id=f"{case.name}-{contestant.name}-t{count}-lap{lap}")
        for count in (threads if device == "cpu" else [1])
        for case in module.cases(device)
        if only in case.name
        for lap in range(LAPS)
        for contestant in case.contestants
        if contestant.reason_absent is None
    ]
    metafunc.parametrize(("threads", "case", "lap", "contestant"), rows)


@pytest.fixture(autouse=True)
def _thread_count(threads: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bandwidths(request: pytest.FixtureRequest) -> dict[int, float]:
    """Measured bytes per second by thread count: reads on a CPU, device copies on a GPU."""
    if request.config.getoption("--bench-device") == "cuda":
        return {1: machine.copy_bandwidth()}
    return {
        count: machine.read_bandwidth(count)
        for count in map(int, str(request.config.getoption("--bench-threads")).split(","))
    }


@pytest.fixture
def describe(
    benchmark: Any, bandwidths: dict[int, float], threads: int, case: Case, lap: int, contestant: Contestant
) -> None:
    """Write into the row what the table needs to read it."""
    benchmark.group = f"{case.name} {threads} threads"
    benchmark.extra_info.update(
        case=case.name,
        operator=case.operator,
        shape=case.shape,
        dtype=case.dtype,
        contestant=contestant.name,
        ours=contestant.ours,
        threads=threads,
        lap=lap,
        bytes=case.bytes,
        work=case.work,
        bandwidth=bandwidths[threads],
    )
