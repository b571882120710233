"""Which weights of a network may be ranked and rewound, and what kind of layer each is in."""

from __future__ import annotations

from torch import nn

from fastmem.errors import InputError

__all__ = ["LAYER_KINDS", "eligible_weights"]

#: What is told apart where figures are given by kind of layer.
LAYER_KINDS = ("conv", "linear", "norm", "bias", "other")

_CONV = (nn.modules.conv._ConvNd,)
_LINEAR = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention)
_NORM = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def eligible_weights(model: nn.Module, norms: bool = False, biases: bool = False) -> dict[str, str]:
    """Trainable parameters that are ranked, with their kind, in the model's order; a shared one is listed once.

    Args:
        model: The network.
        norms: Whether scales and shifts of normalisation layers are.
        biases: Whether biases of the other layers are.

    Returns:
        Kind by parameter name: ``conv``, ``linear`` (attention and embeddings too), ``norm``, ``bias``, or ``other`` for
        matrices of layers that are none of these.

    Raises:
        InputError: If nothing is left.
    """
    kinds: dict[str, str] = {}
    wanted = {"norm": norms, "bias": biases}
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        kind = _kind(owners[name], parameter)
        if parameter.requires_grad and wanted.get(kind, True):
            kinds[name] = kind
    if not kinds:
        raise InputError("model", f"{type(model).__name__} has no weights to rank", "allow norms or biases")
    return kinds


def _kind(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(module, _NORM):
        return "norm"
    if parameter.ndim < 2:
        return "bias"
    if isinstance(module, _CONV):
        return "conv"
    return "linear" if isinstance(module, _LINEAR) else "other"
