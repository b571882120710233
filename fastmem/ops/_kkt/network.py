"""A network prepared for many calls of ``kkt_residual``: its parameters, their targets, and its layers if it has a closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor

__all__ = ["KktNetwork", "Layer"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer and what its parameters should be.

    Args:
        weight: [outputs, inputs].
        bias: [outputs], or None.
        weight_target: As ``weight``; the very same tensor where the target is the parameter itself.
        bias_target: As ``bias``.
    """

    weight: Tensor
    bias: Tensor | None
    weight_target: Tensor
    bias_target: Tensor | None

    @property
    def targets_itself(self) -> bool:
        """Whether ``a T^T + t`` is the layer's output, which is then at hand."""
        return self.weight_target is self.weight and self.bias_target is self.bias


@dataclass(frozen=True, eq=False)
class KktNetwork:
    """A network at fixed weights. Its parameters are read, never moved; make another one after they have changed.

    Attributes:
        model: The network, in eval mode.
        targets: What the sum of gradients should equal, by parameter name (the trainable parameters).
        layers: Of a ReLU perceptron, else empty.
        no_closed_form: Why there are no layers; empty if there are.
        notes: Where implementations keep what they derive from the weights, as packed copies.
    """

    model: nn.Module
    targets: dict[str, Tensor]
    layers: tuple[Layer, ...]
    no_closed_form: str
    notes: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, targets: Mapping[str, Tensor] | None = None) -> KktNetwork:
        """Check a network and take it apart.

        Args:
            model: In eval mode; float32 or float64.
            targets: By parameter name; the parameters themselves by default.

        Raises:
            InputError: The model has no parameters, one that is not finite, batch normalisation in training mode, or
                targets that do not fit.
        """
        if not isinstance(model, nn.Module):
            raise InputError("model", f"got {type(model).__name__}", "give a torch.nn.Module")
        for name, module in model.named_modules():
            if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
                raise InputError(
                    "model", f"{name} normalises by the statistics of the batch", "call model.eval() first"
                )
        parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        if not parameters:
            raise InputError(
                "model", "has no trainable parameters", "give a network whose parameters require gradients"
            )
        first = next(iter(parameters.values()))
        for name, value in parameters.items():
            require_dtype(name, value, (first.dtype,) if first.dtype == torch.float64 else (torch.float32,))
            if not torch.isfinite(value).all():
                raise InputError("model", f"{name} has values that are not finite", "give the weights of a sound model")
        wanted = _checked_targets(parameters, targets)
        layers, reason = _perceptron(model, parameters, wanted)
        return cls(model, wanted, layers, reason)

    @property
    def dtype(self) -> torch.dtype:
        """Of all parameters."""
        return next(iter(self.targets.values())).dtype

    @property
    def device(self) -> torch.device:
        """Of all parameters."""
        return next(iter(self.targets.values())).device


def _checked_targets(parameters: Mapping[str, Tensor], targets: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if targets is None:
        return dict(parameters)
    if set(targets) != set(parameters):
        odd = sorted(set(targets) ^ set(parameters))[:3]
        raise InputError("targets", f"do not name the same parameters as the model: {', '.join(odd)}", "name them all")
    for name, target in targets.items():
        parameter = parameters[name]
        require_tensor("targets", target)
        require_dtype("targets", target, (parameter.dtype,))
        require_same_device("targets", target, name, parameter)
        if target.shape != parameter.shape:
            raise InputError("targets", f"{name} has shape {list(target.shape)}", f"give {list(parameter.shape)}")
    return {name: targets[name].detach() for name in parameters}


def _perceptron(
    model: nn.Module, parameters: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> tuple[tuple[Layer, ...], str]:
    """The layers of a ReLU perceptron with biases anywhere or nowhere, or the reason why it is none."""
    # A fastmem MLP computes its chain of layers and nothing else; this floor cannot import the class.
    own = (type(model).__module__, type(model).__name__) == ("fastmem.models.mlp", "MLP")
    chain, prefix = (model.get_submodule("layers"), "layers.") if own else (model, "")
    if type(chain) is not nn.Sequential:
        return (), "the model is neither a fastmem MLP nor a Sequential"
    modules = list(chain.named_children())
    if modules and type(modules[0][1]) is nn.Flatten and (modules[0][1].start_dim, modules[0][1].end_dim) == (1, -1):
        modules = modules[1:]
    linear = modules[::2]
    if len(modules) != 2 * len(linear) - 1 or any(type(module) is not nn.Linear for _, module in linear):
        return (), "the model is not linear layers with activations between them"
    if any(type(module) is not nn.ReLU for _, module in modules[1::2]):
        return (), "the closed form is written for ReLU"
    if any(_is_altered(module) for module in model.modules()):
        return (), "a hook or another forward is attached to the model"
    layers = []
    for name, module in linear:
        names = [f"{prefix}{name}.weight"] + ([] if module.bias is None else [f"{prefix}{name}.bias"])
        if any(each not in parameters for each in names):
            return (), "some weights are frozen or shared"
        values = [parameters[each] for each in names]
        wanted = [_same_memory(parameters[each], targets[each]) for each in names]
        layers.append(
            Layer(values[0], values[1] if len(values) > 1 else None, wanted[0], wanted[1] if len(wanted) > 1 else None)
        )
    return tuple(layers), ""


def _same_memory(parameter: Tensor, target: Tensor) -> Tensor:
    """The parameter itself where it is its own target: what follows then asks by identity."""
    return parameter if target.data_ptr() == parameter.data_ptr() and target.shape == parameter.shape else target


def _is_altered(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
