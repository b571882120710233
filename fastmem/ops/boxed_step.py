"""One step of an optimiser on many problems at once, each with a quadratic penalty outside a box of its own, in one pass.

Reconstruction moves candidates and multipliers along the gradient of ``kkt_residual`` plus that of ``weight relu(x - high)^2 +
weight relu(low - x)^2``, with momentum (Haim et al. 2022, arXiv:2206.07758) or by Adam (Kingma and Ba 2015,
arXiv:1412.6980). Written out in PyTorch that is a dozen passes over the candidates.

Roof: memory traffic, 3 reads and 2 writes of an element (20 bytes in float32), 4 and 3 with Adam.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select

__all__ = ["ADAM", "BoxedStep", "boxed_step_"]

#: Adam's decay of the mean and of the mean square, and what is added to its root.
ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True, eq=False, repr=False)
class BoxedStep:
    """What an implementation is handed: contiguous tensors of one dtype and device.

    Args:
        x: Problems [S, ...], moved in place.
        gradient: As ``x``, without the penalty.
        moment: As ``x``, in place.
        square: As ``x``, in place: Adam's; None for momentum.
        rate: [S].
        keep: [S].
        low: [S].
        high: [S].
        spread: [S], with ``square``.
        weight: Of the penalty.
        momentum: Without ``square``.
    """

    x: Tensor
    gradient: Tensor
    moment: Tensor
    square: Tensor | None
    rate: Tensor
    keep: Tensor
    low: Tensor
    high: Tensor
    spread: Tensor | None
    weight: float
    momentum: float

    def __repr__(self) -> str:
        kind = "momentum" if self.square is None else "Adam"
        return f"{str(self.x.dtype).removeprefix('torch.')} {list(self.x.shape)} on {self.x.device}, {kind}"


@torch.no_grad()
def boxed_step_(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    *,
    rate: Tensor,
    low: Tensor,
    high: Tensor,
    keep: Tensor,
    square: Tensor | None = None,
    spread: Tensor | None = None,
    weight: float = 1.0,
    momentum: float = 0.9,
) -> None:
    """Move ``x`` one step, in place and without asking the device for anything.

    ::

        g = gradient + 2 weight (x - x clamped to [low, high])
        momentum:  moment = momentum keep moment + g;             x -= rate moment
        Adam:      moment = keep moment + (1 - 0.9) (g - keep moment);  the same of g^2 with 0.999 in square
                   x -= rate moment / (spread sqrt(square) + 1e-8)

    Args:
        x: [S, ...], contiguous; float32 or float64.
        gradient: As ``x``, contiguous.
        moment: As ``x``, contiguous; changed in place.
        rate: Step size [S] of each problem, for Adam over ``1 - 0.9^t``. A problem of rate 0 stays where it is and
            forgets its moments, whatever its gradient holds.
        low: Lower ends of the boxes [S]; minus infinity for none.
        high: Upper ends [S].
        keep: [S]: 1, or 0 where a problem should forget its moments before the step.
        square: As ``x``, contiguous; changed in place. With it the step is Adam's.
        spread: ``(1 - 0.999^t)^-0.5`` [S], beside ``square``.
        weight: Of the penalty.
        momentum: Without ``square``.

    Raises:
        InputError: Shapes, dtypes, devices or layouts do not fit, or one of ``square`` and ``spread`` is given alone.
    """
    (step,) = forward_arguments(
        x, gradient, moment, rate=rate, low=low, high=high, keep=keep, square=square, spread=spread, weight=weight,
        momentum=momentum,
    )  # fmt: skip
    select("boxed_step", step).forward(step)


def forward_arguments(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    *,
    rate: Tensor,
    low: Tensor,
    high: Tensor,
    keep: Tensor,
    square: Tensor | None = None,
    spread: Tensor | None = None,
    weight: float = 1.0,
    momentum: float = 0.9,
) -> tuple[BoxedStep]:
    """What an implementation is handed for a public call, checked."""
    require_tensor("x", x)
    require_dtype("x", x, (torch.float32, torch.float64))
    if (square is None) != (spread is None):
        raise InputError("spread" if spread is None else "square", "is missing", "Adam takes square and spread")
    if x.ndim < 1:
        raise InputError("x", "is a number", "give problems [S, ...]")
    shapes = {"x": x.shape, "gradient": x.shape, "moment": x.shape, "square": x.shape}
    named = {"x": x, "gradient": gradient, "moment": moment, "square": square}
    named |= {"rate": rate, "keep": keep, "low": low, "high": high, "spread": spread}
    for name, tensor in named.items():
        if tensor is None:
            continue
        require_tensor(name, tensor)
        require_dtype(name, tensor, (x.dtype,))
        require_same_device(name, tensor, "x", x)
        expected = shapes.get(name, x.shape[:1])
        if tensor.shape != expected or not tensor.is_contiguous():
            given = f"has shape {list(tensor.shape)}, strides {list(tensor.stride())}"
            raise InputError(name, given, f"give {list(expected)}, contiguous")
    return (BoxedStep(x, gradient, moment, square, rate, keep, low, high, spread, float(weight), float(momentum)),)
