"""Which implementations of an operator the tests run on: every one that works on this machine, on every device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fastmem.ops
from fastmem.ops import _native, _registry, use_backend
from fastmem.ops._registry import BACKEND_NAMES


@dataclass(frozen=True)
class Implementation:
    """A backend on a device; the tests' fixtures force it."""

    backend: str
    device: str

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter takes milliseconds for every program: such a run gets fewer and smaller cases."""
        return self.backend == "triton" and self.device == "cpu"

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


def ways(op: str) -> list[str]:
    """The reference, and the instruction sets of this processor that an operator of the C++ module has kernels for."""
    return ["reference", *(_native.cpu_module().isas() if _native.why_no_cpu(op) is None else [])]


@contextmanager
def taken(way: str) -> Iterator[None]:
    """Within, operators take one of :func:`ways`."""
    if way == "reference":
        with use_backend("reference"):
            yield
        return
    native = _native.cpu_module()
    before = native.isa()
    native.set_isa(way)
    try:
        with use_backend("cpu"):
            yield
    finally:
        native.set_isa(before)


def stand_in_for_native(monkeypatch: pytest.MonkeyPatch, op: str, **changes: Any) -> None:
    """The reference's functions under the name "cpu", some of them changed: what ``auto`` takes then."""
    known = _registry._implementations(op).backends["reference"]
    replaced = _registry._Implementations(loaded=True)
    replaced.add(known)
    replaced.add(dataclasses.replace(known, name="cpu", priority=1000, **changes))
    monkeypatch.setitem(_registry._operators, op, replaced)


def implementations(op: str, *example: torch.Tensor) -> list[Any]:
    """Test parameters: the implementations that run on this machine and take the example, on each of its devices."""
    parameters = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        arguments = [tensor.to(device) for tensor in example]
        for name in BACKEND_NAMES:
            with use_backend(name):
                runs = fastmem.ops.explain(op, *arguments).chosen == name
            if runs:
                implementation = Implementation(name, device)
                parameters.append(pytest.param(implementation, id=str(implementation)))
    return parameters
