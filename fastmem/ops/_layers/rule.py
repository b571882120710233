"""What a layer family's file says about one function of PyTorch: which argument is what, and the gradients' form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastmem.ops._layers.forms import Form

__all__ = ["Arguments", "Rule"]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call by their roles.

    Attributes:
        input: What the layer reads.
        weight: Its weight or scale, if any.
        bias: Its bias or shift, if any.
        leading: The first so many dimensions of ``input`` and of the output may hold the batch.
        options: Everything else, by name.
        refusal: Why this call is not covered, or ``None``.
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    leading: int
    options: dict[str, Any] | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Rule:
    """How the gradients of every sample follow from a call's input and the gradient at its output.

    Attributes:
        name: As ``explain`` shows it.
        arguments: Takes the function's own arguments and sorts them by role.
        weight: From input and output gradient, both ``[B, R, ...]`` (R: how often the batch repeats in that dimension,
            mostly 1), the weight's form.
        bias: The same for the bias.
    """

    name: str
    arguments: Callable[..., Arguments]
    weight: Callable[[Tensor, Tensor, Arguments], Form]
    bias: Callable[[Tensor, Tensor, Arguments], Form]
