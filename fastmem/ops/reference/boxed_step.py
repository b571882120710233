"""A step with a penalty outside a box in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmem.ops._registry import Backend, register
from fastmem.ops.boxed_step import ADAM, BoxedStep


def forward(step: BoxedStep) -> None:
    """Moves ``x`` and its moments, see :func:`fastmem.ops.boxed_step.boxed_step_`."""
    x = step.x

    def over(values: Tensor) -> Tensor:
        return values.view(-1, *([1] * (x.ndim - 1)))

    # relu(x - high) - relu(low - x) is x less its nearest point in the box.
    outside = x - torch.minimum(torch.maximum(x, over(step.low)), over(step.high))
    gradient = step.gradient + outside * (2 * step.weight)
    stays, rate = over(step.rate == 0), over(step.rate)
    moment = step.moment.mul_(over(step.keep))
    if step.square is None:
        moved = x - moment.mul_(step.momentum).add_(gradient) * rate
    else:
        assert step.spread is not None, "the public function asks for both"
        decay, decay_sq, least = ADAM
        moment.add_((gradient - moment) * (1 - decay))
        square = step.square.mul_(over(step.keep))
        square.add_((gradient * gradient - square) * (1 - decay_sq))
        moved = x - rate * moment / (over(step.spread) * square.sqrt() + least)
        square.masked_fill_(stays, 0)
    moment.masked_fill_(stays, 0)
    x.copy_(torch.where(stays, x, moved))


register(
    Backend(
        op="boxed_step",
        name="reference",
        priority=0,
        available=lambda: None,
        supports=lambda step: None,
        forward=forward,
    )
)
