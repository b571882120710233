"""Multi-layer perceptron on flattened inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError

__all__ = ["ACTIVATIONS", "MLP"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        input_shape: Shape of one sample; flattened.
        num_classes: Width of the output.
        hidden: Widths of the hidden layers; none gives a linear classifier.
        activation: ``relu``, ``gelu``, ``tanh`` or ``silu``.
        dropout: Share of hidden units dropped in training.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, ACTIVATIONS)
        if any(width < 1 for width in hidden):
            raise InputError("hidden", f"{tuple(hidden)}", "give the width of each hidden layer, at least 1")
        if not 0 <= dropout < 1:
            raise InputError("dropout", f"{dropout}", "give a share from 0 to below 1")
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for size in hidden:
            layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of a batch [B, *input_shape]."""
        return self.layers(x)
