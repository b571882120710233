"""A step that is taken thousands of times on the same memory: on a GPU as one CUDA graph, elsewhere as it is.

With few candidates a step is dozens of kernels of a few microseconds, and launching them takes longer than running them. A
graph launches them all at once. It is recorded from the very function that runs without it, so there is one form of a step.

The recording was written without a GPU at hand and has not run on one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["WARM_UP", "Replayed"]

#: Calls before the recording: libraries allocate and choose at first, which a graph cannot hold.
WARM_UP = 3


class Replayed:
    """Calls a step; from call ``WARM_UP`` + 1 on a CUDA device on as one graph.

    Args:
        step: Changes the same memory at every call, and asks the device for nothing.
        device: Where that memory is.

    Attributes:
        reason: Why calls are not replayed as a graph, None if they are or will be.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._device = step, device
        self._calls, self._graph = 0, None
        self.reason = None if device.type == "cuda" else f"graphs are CUDA's, and the network is on {device.type}"

    def __call__(self) -> None:
        """One step."""
        self._calls += 1
        if self._graph is None and self.reason is None and self._calls > WARM_UP:
            try:
                self._graph = _record(self._step, self._device)
            except RuntimeError as error:
                self.reason = f"it could not be recorded: {' '.join(str(error).split())[:200]}"
        if self._graph is not None:
            self._graph.replay()
        elif self.reason is None:
            _beside(self._step, self._device)
        else:
            self._step()


def _beside(step: Callable[[], None], device: torch.device) -> None:
    """One step on a stream of its own, as recording asks of the calls before it."""
    now, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(now)
    with torch.cuda.stream(side):
        step()
    now.wait_stream(side)


def _record(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """The step as a graph. Recording does not run it."""
    graph = torch.cuda.CUDAGraph()
    # Another thread's allocations, such as those of a progress display, are no reason to fail.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph
