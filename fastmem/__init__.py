"""fastmem: what does a neural network remember of its training data?

The names below load when they are first used, so ``import fastmem`` is quick and needs no GPU, no torchvision and no
native module. ``fastmem.explain(op, ...)`` says which backend an operator would run on, and why.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmem import attacks, defenses, metrics
    from fastmem.ops import LogitStats, explain, kl_div, logit_margin, logit_stats, use_backend
    from fastmem.ops.grad_stats import GradStats, grad_stats
    from fastmem.ops.kkt_residual import KktResidual, kkt_residual
    from fastmem.ops.per_sample_grads import per_sample_grads
    from fastmem.ops.top_fraction import top_fraction
    from fastmem.ops.weight_importance import weight_importance
    from fastmem.signals import Signals

    __version__: str

__all__ = [
    "GradStats",
    "KktResidual",
    "LogitStats",
    "Signals",
    "__version__",
    "attacks",
    "defenses",
    "explain",
    "grad_stats",
    "kkt_residual",
    "kl_div",
    "logit_margin",
    "logit_stats",
    "metrics",
    "per_sample_grads",
    "top_fraction",
    "use_backend",
    "weight_importance",
]

_MODULES = ("attacks", "defenses", "metrics")
_HOME = {
    "GradStats": "fastmem.ops.grad_stats",
    "KktResidual": "fastmem.ops.kkt_residual",
    "LogitStats": "fastmem.ops",
    "Signals": "fastmem.signals",
    "explain": "fastmem.ops",
    "grad_stats": "fastmem.ops.grad_stats",
    "kkt_residual": "fastmem.ops.kkt_residual",
    "kl_div": "fastmem.ops",
    "logit_margin": "fastmem.ops",
    "logit_stats": "fastmem.ops",
    "per_sample_grads": "fastmem.ops.per_sample_grads",
    "top_fraction": "fastmem.ops.top_fraction",
    "use_backend": "fastmem.ops",
    "weight_importance": "fastmem.ops.weight_importance",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("fastmem")
    elif name in _MODULES:
        value = importlib.import_module(f"fastmem.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'fastmem' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
