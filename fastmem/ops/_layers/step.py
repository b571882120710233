"""What both public functions ask of a call, and the choice between the layers' rules and ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmem.errors import InputError
from fastmem.ops._checks import require_dtype
from fastmem.ops._layers.capture import Capture, NotCoveredError, eagerly, require_samples_apart
from fastmem.ops._layers.forms import Form
from fastmem.ops._layers.functional import Functional
from fastmem.ops._layers.joining import FormRecorder
from fastmem.ops._layers.probe import Plan, probe, require_losses, taken

__all__ = ["LossFn", "Step", "trainable"]

LossFn = Callable[[Any, Any], Tensor]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, each once; refuses models without any or that mix samples."""
    if not isinstance(model, nn.Module):
        raise InputError("model", f"got {type(model).__name__}", "give a torch.nn.Module")
    require_samples_apart(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise InputError("model", "has no parameter that requires a gradient", "unfreeze those you ask about")
    for name, parameter in parameters.items():
        require_dtype(f"model parameter {name!r}", parameter)
    return parameters


@dataclass
class Step:
    """A batch that is about to go through a model, checked.

    Attributes:
        model: The model.
        loss_fn: Outputs and targets to losses [B].
        inputs: Positional arguments of the model.
        targets: For ``loss_fn``.
        parameters: The trainable parameters by name.
        batch: B.
    """

    model: nn.Module
    loss_fn: LossFn
    inputs: tuple[Any, ...]
    targets: Any
    parameters: dict[str, nn.Parameter]
    batch: int

    @classmethod
    def checked(cls, model: nn.Module, loss_fn: LossFn, inputs: Any, targets: Any) -> Step:
        """Check what can be told before anything runs."""
        parameters = trainable(model)
        if not callable(loss_fn):
            raise InputError("loss_fn", f"got {type(loss_fn).__name__}", "give a function of outputs and targets")
        arguments = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        batch = _batch_of(arguments, targets)
        return cls(model, loss_fn, arguments, targets, parameters, batch)

    def plan(self) -> Plan | str:
        """How the layers' rules go about it, or why they cannot."""
        if isinstance(self.model, torch.jit.ScriptModule):
            return "a scripted module hides its operations"
        try:
            return probe(self.parameters, self.batch, self._run_some)
        except NotCoveredError as reason:
            return str(reason)

    def by_layers(self, plan: Plan, finish: Callable[[str, Form], Tensor | None]) -> None:
        """Forward and backward; every parameter's form goes to ``finish`` as soon as it is complete.

        Raises:
            NotCoveredError: This batch takes another way through the model than the plan's samples did.
        """
        recorder = FormRecorder(self.parameters, self.batch, finish)
        anchor = torch.zeros((), device=next(iter(self.parameters.values())).device, requires_grad=True)
        inputs, targets = pytree.tree_map_only(Tensor, Tensor.detach, (self.inputs, self.targets))
        with eagerly():
            with Capture(self.parameters, recorder, anchor, lambda call: plan.layout(call, self.batch)):
                losses = self.loss_fn(self.model(*inputs), targets)
            require_losses(losses, self.batch)
            if losses.requires_grad:
                ends = [anchor, *self.parameters.values()]
                found = torch.autograd.grad(losses.sum(), ends, allow_unused=True)
                if any(gradient is not None for gradient in found[1:]):
                    raise NotCoveredError("a parameter reaches the loss by a way that cannot be watched")
        recorder.flush()

    def functional(self) -> Functional:
        """The way through ``torch.func``."""
        return Functional(self.model, self.loss_fn, self.parameters, self.inputs, self.targets, self.batch)

    def _run_some(self, indices: Tensor) -> tuple[Tensor, Any]:
        inputs, targets = taken((self.inputs, self.targets), indices, self.batch)
        # Buffers that the model writes to are copies: two samples leave no trace.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        output = torch.func.functional_call(self.model, buffers, inputs)
        return self.loss_fn(output, targets), output


def _batch_of(inputs: tuple[Any, ...], targets: Any) -> int:
    """B, after checking that every tensor has it."""
    batch: int | None = None
    for argument, tree in (("inputs", inputs), ("targets", targets)):
        for leaf in pytree.tree_leaves(tree):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.ndim == 0:
                raise InputError(argument, "has a tensor without dimensions", "give tensors with the batch first")
            if batch is None:
                batch = leaf.shape[0]
            elif leaf.shape[0] != batch:
                raise InputError(
                    argument,
                    f"has {leaf.shape[0]} samples where inputs have {batch}",
                    "give the batch first, everywhere",
                )
    if batch is None:
        raise InputError("inputs", "hold no tensor", "give a tensor, or a tuple of the model's arguments")
    return batch
