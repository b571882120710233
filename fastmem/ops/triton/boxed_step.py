"""A step with a penalty outside a box by a Triton kernel: one program a block of elements of one problem.

Roof: memory traffic, as :mod:`fastmem.ops.boxed_step` says.

Reasoned, compiled ahead of time and run in Triton's interpreter, but not yet measured: no GPU was at hand.
"""

# Launching a kernel adds options to its arguments.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from fastmem.ops._registry import Backend, register
from fastmem.ops.boxed_step import ADAM, BoxedStep
from fastmem.ops.triton import OPTIONS, ceil_divide, launching, triton_dtype, why_elsewhere, why_unavailable

__all__ = ["forward"]

_BLOCK = 1024


def forward(step: BoxedStep) -> None:
    """Moves ``x`` and its moments, see :func:`fastmem.ops.boxed_step.boxed_step_`."""
    from fastmem.ops.triton._kkt_kernels import boxed_step

    if not step.x.numel():
        return
    adam = step.square is not None
    elements = step.x.numel() // len(step.x)
    with launching(step.x):
        boxed_step[(len(step.x), ceil_divide(elements, _BLOCK))](
            step.x, step.gradient, step.moment, step.square if adam else step.moment,
            step.rate, step.keep, step.low, step.high, step.spread if adam else step.rate, elements,
            WEIGHT=step.weight, MOMENTUM=step.momentum, DECAY=ADAM[0], DECAY_SQ=ADAM[1], LEAST=ADAM[2],
            IS_ADAM=adam, TYPE=triton_dtype(step.x.dtype), BLOCK=_BLOCK, num_warps=4, **OPTIONS,
        )  # fmt: skip


register(
    Backend(
        op="boxed_step",
        name="triton",
        # On CPU tensors (the interpreter) it serves tests, and never by itself.
        priority=lambda step: -1 if step.x.device.type == "cpu" else 20,
        available=why_unavailable,
        supports=lambda step: why_elsewhere(step.x),
        forward=forward,
    )
)
