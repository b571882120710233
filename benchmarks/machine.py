"""What a figure was measured on: processor, device, versions, load, and the bandwidth to hold it against."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

_BANDWIDTH_BYTES = 1 << 28


def cpu_name() -> str:
    """The processor's model name, with its number of usable cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = found.group(1) if found else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def device_name(device: str) -> str:
    """The name of the machine or GPU, as it stands in tables."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def folder_name(device: str) -> str:
    """A file-system name for the results of this machine, e.g. ``amd-epyc-2-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


class OtherLoad:
    """Processor cores that other processes use, on average since this was made (0.0 on a quiet machine)."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._start = self._used()

    def cores(self) -> float:
        """The average so far; ticks of the system's clock limit it to what a tenth of a second can tell."""
        return max(0.0, (self._used() - self._start) / (time.perf_counter() - self._began))

    @staticmethod
    def _used() -> float:
        stat = Path("/proc/stat")
        if not stat.exists():
            return os.getloadavg()[0] * time.perf_counter()
        ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") - _own_seconds()


def _own_seconds() -> float:
    """Processor time of this process and of those that it has started, which work for a contestant."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        # utime, stime, cutime, cstime; the name before them may hold spaces.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        total += sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")
    ended = os.times()
    return total + ended.children_user + ended.children_system


def other_load(seconds: float = 0.5) -> float:
    """Processor cores that other processes are using at this moment."""
    load = OtherLoad()
    time.sleep(seconds)
    return load.cores()


def read_bandwidth(threads: int) -> float:
    """Bytes per second that a plain read of a buffer far larger than the caches reaches.

    ``torch.sum`` over float32 is bound by arithmetic on one core, so the largest of several reductions counts.
    """
    data = torch.ones(_BANDWIDTH_BYTES // 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        readers = [data.sum, data.amax, data.view(torch.float64).sum, data.view(torch.int64).amax]
        return max(_bytes_per_second(read, data.nbytes) for read in readers)
    finally:
        torch.set_num_threads(before)


def copy_bandwidth() -> float:
    """Bytes per second (read and written) of a device-to-device copy on the current GPU."""
    source = torch.ones(_BANDWIDTH_BYTES, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.nbytes / statistics.median(times)


def _bytes_per_second(read: Any, nbytes: int) -> float:
    times = []
    for _ in range(9):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return nbytes / statistics.median(times)


def commit() -> str:
    """The commit that is measured, with a mark where the working tree differs from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "csrc", "fastmem", "benchmarks/*.py"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """The versions of what was measured and what it was measured against."""
    import numpy

    import fastmem

    found = {"fastmem": fastmem.__version__, "torch": torch.__version__, "numpy": numpy.__version__}
    found["python"] = platform.python_version()
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def peak_memory() -> int:
    """The most bytes of memory that this process has held.

    Of this program alone: the system's other figure, ``ru_maxrss``, starts from what the process held that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
