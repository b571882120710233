"""A case is an operator on inputs of one shape; its contestants compute the same result in different ways."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config

import fastmem


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    Attributes:
        name: As it stands in the tables: ``eager``, ``compile``, ``fastmem cpu``, or a peer with its version.
        run: Called with the inputs of the case.
        ours: Whether fastmem computes it.
        reason_absent: Why it cannot run on this machine, or ``None``.
    """

    name: str
    run: Callable[..., Any]
    ours: bool = False
    reason_absent: str | None = None


@dataclass(frozen=True)
class Case:
    """An operator, its inputs, and who computes it.

    Attributes:
        name: Unique name, used to select it.
        operator: Name of the operator and direction, e.g. ``kl_div forward``.
        shape: Shape of the inputs as text.
        dtype: Element type as text.
        bytes: Bytes that any implementation must move (the roof of kernels that are bound by memory).
        inputs: Makes the inputs.
        contestants: Who computes it; the first is the baseline.
        work: How many times the baseline's work fastmem does (more than 1 where the baseline would take minutes).
    """

    name: str
    operator: str
    shape: str
    dtype: str
    bytes: int
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    contestants: tuple[Contestant, ...]
    work: float = 1.0


def ours(operator: str, run: Callable[..., Any], sample: tuple[Any, ...]) -> tuple[Contestant, ...]:
    """One contestant for each backend of ``operator``; ``sample`` are arguments of its public function."""

    def on(backend: str) -> Callable[..., Any]:
        def call(*inputs: torch.Tensor) -> Any:
            with fastmem.use_backend(backend):
                return run(*inputs)

        return call

    remarks = fastmem.explain(operator, *sample).remarks
    absent = ("not available", "does not take")
    return tuple(
        Contestant(f"fastmem {name}", on(name), ours=True, reason_absent=remark if remark.startswith(absent) else None)
        for name, remark in remarks.items()
        if name != "reference"
    )


def peer(package: str, run: Callable[..., Any]) -> Contestant:
    """Another package's way to compute a case, at the version that is installed, if it is and loads."""
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever keeps a stranger's package from loading keeps it out of the race
        return Contestant(package, run, reason_absent=f"{package} does not load: {error}")
    return Contestant(f"{package} {importlib.metadata.version(package)}", run)


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of ``run`` for static shapes; it compiles at the first call and again for other thread counts."""
    torch._dynamo.config.recompile_limit = 64
    # Graphs are kept for repeated backward passes, so their buffers must stay.
    functorch_config.donated_buffer = False
    return torch.compile(run, dynamic=False)


def backward_of(forward: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """The backward pass of ``forward`` alone, towards every input that requires a gradient.

    The graph of each set of inputs is built once and kept; gradients are allocated anew at every call, as in training.
    """
    graphs: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def run(*inputs: torch.Tensor) -> Any:
        key = (torch.get_num_threads(), *map(id, inputs))
        if key not in graphs:
            output = forward(*inputs)
            graphs[key] = output, torch.rand_like(output)
        output, gradient = graphs[key]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        return torch.autograd.grad(output, wanted, gradient, retain_graph=True)

    return run
