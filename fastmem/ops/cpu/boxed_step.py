"""A step with a penalty outside a box by the C++ kernel: every element is read and written once."""

from __future__ import annotations

import torch

from fastmem.ops._native import DTYPE_CODES, cpu_module, why_no_cpu
from fastmem.ops._registry import Backend, register
from fastmem.ops.boxed_step import ADAM, BoxedStep


def forward(step: BoxedStep) -> None:
    """Moves ``x`` and its moments, see :func:`fastmem.ops.boxed_step.boxed_step_`."""
    problems = len(step.x)
    cpu_module().boxed_step(
        step.x.data_ptr(),
        step.gradient.data_ptr(),
        step.moment.data_ptr(),
        0 if step.square is None else step.square.data_ptr(),
        step.rate.data_ptr(),
        step.keep.data_ptr(),
        step.low.data_ptr(),
        step.high.data_ptr(),
        0 if step.spread is None else step.spread.data_ptr(),
        problems,
        step.x.numel() // problems if problems else 0,
        step.weight,
        step.momentum,
        *ADAM,
        DTYPE_CODES[step.x.dtype],
        torch.get_num_threads(),
    )


def _supports(step: BoxedStep) -> str | None:
    device = step.x.device.type
    return None if device == "cpu" else f"it computes on the CPU, and these tensors are on {device}"


register(
    Backend(
        op="boxed_step",
        name="cpu",
        priority=10,
        available=lambda: why_no_cpu("boxed_step"),
        supports=_supports,
        forward=forward,
    )
)
