"""Multi-layer perceptron on flattened inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmem.errors import InputError, UnknownNameError

__all__ = ["ACTIVATIONS", "MLP", "is_altered", "relu_layers"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        input_shape: Shape of one sample; flattened.
        num_classes: Width of the output.
        hidden: Widths of the hidden layers; none gives a linear classifier.
        activation: ``relu``, ``gelu``, ``tanh`` or ``silu``.
        dropout: Share of hidden units dropped in training.
        batch_norm: Normalise over the batch before each activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (512, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
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
            norm = [nn.BatchNorm1d(size)] if batch_norm else []
            layers += [nn.Linear(width, size), *norm, ACTIVATIONS[activation]()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of a batch [B, *input_shape]."""
        return self.layers(x)


def relu_layers(model: nn.Module) -> list[nn.Linear] | str:
    """The linear layers of a ReLU perceptron, which may then be computed in another way; else why it is none.

    Args:
        model: An :class:`MLP`, or an ``nn.Sequential`` of the same layers: linear ones with a ReLU between any two,
            perhaps after an ``nn.Flatten``. Anything that might compute something else is refused: a subclass, a hook,
            a frozen or missing or shared parameter.
    """
    chain = model.layers if type(model) is MLP else model
    if type(chain) is not nn.Sequential:
        return "the model is neither a fastmem MLP nor a Sequential"
    layers = list(chain)
    if layers and type(layers[0]) is nn.Flatten and (layers[0].start_dim, layers[0].end_dim) == (1, -1):
        layers = layers[1:]
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    if len(layers) != 2 * len(linear) - 1 or any(type(layer) is not nn.ReLU for layer in layers[1::2]):
        return "the model is not linear layers with ReLUs between them"
    if any(is_altered(module) for module in model.modules()):
        return "a hook or another forward is attached to the model"
    parameters = [parameter for layer in linear for parameter in (layer.weight, layer.bias)]
    if any(parameter is None or not parameter.requires_grad for parameter in parameters):
        return "some weights are frozen or missing"
    if len({parameter.data_ptr() for parameter in parameters}) != len(parameters):
        return "layers share weights"
    if len(dtypes := {parameter.dtype for parameter in parameters}) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return f"the weights are of {', '.join(sorted(map(str, dtypes)))}".replace("torch.", "")
    if not all(parameter.is_contiguous() for parameter in parameters):
        return "the weights are not contiguous"
    return linear


def is_altered(module: nn.Module) -> bool:
    """Whether a hook or a ``forward`` of its own is attached to this very module."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)
