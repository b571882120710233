"""Adam (Kingma and Ba 2015) over stacks of parameters, with moments that are dropped with the object.

Each element of a stack is a problem of its own; since Adam works value by value, one update serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Adam"]

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """Moments and the step count.

    Args:
        learning_rate: Step size.
    """

    def __init__(self, learning_rate: float) -> None:
        self._rate = learning_rate
        self._moments: list[tuple[Tensor, Tensor]] = []
        self._steps = 0

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The values after a step, in place; the gradients are used up."""
        if not self._moments:
            self._moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
        self._steps += 1
        first, second = _BETAS
        bias, scale = 1 - first**self._steps, (1 - second**self._steps) ** 0.5
        for value, gradient, (mean, square) in zip(values, gradients, self._moments, strict=True):
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            value.addcdiv_(mean, square.sqrt().div_(scale).add_(_EPSILON), value=-self._rate / bias)
        return list(values)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Adam:
        """Another one that goes on from the changed moments, say from those of some problems."""
        other = Adam(self._rate)
        other._moments = [(change(mean), change(square)) for mean, square in self._moments]
        other._steps = self._steps
        return other
