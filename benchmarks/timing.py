"""Timers for pytest-benchmark: the wall clock on a CPU, device events on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.machine import OtherLoad

_L2_BYTES = 256 << 20


class EventInstant:
    """A moment on the current CUDA stream; the difference of two is a duration in seconds.

    pytest-benchmark subtracts what its timer returned, so the device is waited for only then, and the cost of launching
    is not in the figure.
    """

    def __init__(self, event: Any | None = None) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if event is None else event
        self._event.record()

    def __sub__(self, earlier: EventInstant) -> float:
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3


def copies_past_cache(tensors: tuple[torch.Tensor, ...]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cycle through copies of the inputs that together exceed the last-level cache of a GPU.

    On a CPU the same inputs are handed out again and again: a shape that fits the cache is measured in the cache, for
    every contestant alike.
    """
    if tensors[0].device.type != "cuda":
        return itertools.repeat(tensors)
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    count = 1 + _L2_BYTES // max(size, 1)
    return itertools.cycle([tuple(tensor.clone() for tensor in tensors) for _ in range(min(count, 64))])


def measure(benchmark: Any, run: Callable[..., Any], tensors: tuple[torch.Tensor, ...], seconds: float) -> None:
    """Run one contestant for about ``seconds`` through pytest-benchmark, one call a round.

    What other processes used of the machine meanwhile goes into the row.
    """
    inputs = copies_past_cache(tensors)
    cost = _cost(run, tensors)
    # What takes a second is not waited for longer than its median needs, the laps' rounds together.
    fewest, warmups = (5, 2) if cost < 0.5 else (2, 0)
    rounds = max(fewest, min(400, int(seconds / max(cost, 1e-6))))
    if tensors[0].device.type == "cuda":
        benchmark._timer = EventInstant
    # Small cases would measure the harness: several calls make a round of at least 200 microseconds.
    iterations = 1 if cost > 2e-4 else 1 + int(2e-4 / max(cost, 1e-7))
    load = OtherLoad()
    if iterations > 1:
        fixed = next(inputs)
        benchmark.pedantic(run, args=fixed, rounds=max(5, rounds // iterations), iterations=iterations, warmup_rounds=2)
    else:
        benchmark.pedantic(run, setup=lambda: (next(inputs), {}), rounds=rounds, iterations=1, warmup_rounds=warmups)
    benchmark.extra_info["other_load"] = load.cores()


def _cost(run: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> float:
    """Seconds of one call, the first (which may compile) left out."""
    import time

    run(*tensors)
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        run(*tensors)
        if tensors[0].device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        if best > 1.0:
            break
    return best
