"""Gradient descent on perceptrons by the C++ kernel: a model a thread, its steps in one go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.mlp_sgd import Rule, Visit


def forward(visits: Sequence[Visit], rule: Rule) -> list[Tensor]:
    """The losses; weights and momenta are moved in place."""
    losses = [torch.empty(len(visit.rates), dtype=torch.float64) for visit in visits]
    layers = [
        [
            *(tensor.data_ptr() for tensor in (layer.weight, layer.bias, layer.weight_speed, layer.bias_speed)),
            *reversed(layer.weight.shape),
        ]
        for visit in visits
        for layer in visit.layers
    ]
    rows = [
        [
            len(visit.layers),
            visit.x.data_ptr(),
            visit.x.stride(0),
            *(tensor.data_ptr() for tensor in (visit.y, visit.rows, visit.bounds, visit.rates, loss)),
            len(visit.rates),
        ]
        for visit, loss in zip(visits, losses, strict=True)
    ]
    cpu_module().mlp_sgd(
        np.array(layers, dtype=np.int64),
        np.array(rows, dtype=np.int64),
        DTYPE_CODES[visits[0].x.dtype],
        rule.momentum,
        rule.weight_decay,
        rule.label_smoothing,
        rule.nesterov,
        torch.get_num_threads(),
    )
    return losses


def _supports(visits: Sequence[Visit], rule: Rule) -> str | None:
    if not visits:
        return "there is no model"
    device, dtypes = visits[0].x.device.type, {visit.x.dtype for visit in visits}
    if device != "cpu":
        return f"it computes on the CPU, and these tensors are on {device}"
    return None if len(dtypes) == 1 else "the models are of several dtypes"


register(
    Backend(
        op="mlp_sgd",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("mlp_sgd"),
        supports=_supports,
        forward=forward,
    )
)
