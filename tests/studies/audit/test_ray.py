"""An audit on Ray leaves the bytes of a local one, and so it does when a worker is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmem.studies.audit import AuditConfig, run_audit

SmallAudit = Callable[..., AuditConfig]

pytestmark = pytest.mark.xdist_group("ray")


def _workers_of_ray() -> list[int]:
    """Processes that do a task of this run for Ray, as it names them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if name.startswith(b"ray::_work"):
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes as Linux shows them")
@pytest.mark.usefixtures("without_report")
def test_a_worker_killed_in_the_middle_changes_nothing(
    small_audit: SmallAudit, finished_once: Path, run_contents: Callable[[Path], dict[str, bytes]]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fastmem[ray]'")
    config = small_audit(engine="ray", workers=2)
    before, killed, ended = set(_workers_of_ray()), [], threading.Event()

    def kill_one() -> None:
        while not ended.is_set():
            models = list((config.run_dir / "models").glob("*.safetensors"))
            if models and (workers := set(_workers_of_ray()) - before):
                os.kill(killed.append(workers.pop()) or killed[0], signal.SIGKILL)
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        result = run_audit(config)
    finally:
        ended.set()
        killer.join()
    assert killed
    assert run_contents(result.run_dir) == run_contents(finished_once)
    # What is left to do, on this machine's own workers: nothing.
    assert run_audit(small_audit()).trained == 0
