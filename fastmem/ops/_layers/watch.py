"""Watches a model during somebody else's training step: its forward is wrapped, and unwrapped whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastmem.errors import InputError
from fastmem.ops._layers.accumulate import Held, Request
from fastmem.ops._layers.capture import Capture, NotCoveredError, eagerly
from fastmem.ops._layers.joining import FormRecorder
from fastmem.ops._layers.probe import Plan, plan_key, probe, taken

__all__ = ["Watch"]


class Watch:
    """One ``with`` block around training steps.

    Args:
        model: Its calls are watched.
        parameters: Trainable ones by name.
        begin: Makes room for the results of a batch of so many samples.
        plans: What earlier blocks found out; added to.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        begin: Callable[[int], tuple[Held, Request]],
        plans: dict[Any, Plan],
    ) -> None:
        self._model, self._parameters, self._begin = model, parameters, begin
        self._batches: list[tuple[Held, FormRecorder]] = []
        self._plans = plans
        self._probing = False
        self._own_forward: Any = None

    def start(self) -> None:
        """Wrap the model's forward."""
        if isinstance(self._model, torch.jit.ScriptModule):
            raise InputError("model", "is scripted, which hides its operations", "give the module it was made from")
        self._own_forward = self._model.__dict__.get("forward")
        original = self._model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._probing or not torch.is_grad_enabled():
                return original(*args, **kwargs)
            return self._forward(original, args, kwargs)

        self._model.forward = forward

    def stop(self) -> None:
        """Unwrap it."""
        if self._own_forward is None:
            del self._model.__dict__["forward"]
        else:
            self._model.forward = self._own_forward

    def finish(self) -> list[Held]:
        """The batches whose backward pass has run."""
        done = [(held, recorder) for held, recorder in self._batches if recorder.started]
        for _, recorder in done:
            recorder.flush()
        return [held for held, _ in done]

    def _forward(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = _batch_of(args, kwargs)
        if batch == 0:
            return original(*args, **kwargs)
        try:
            plan = self._plan(args, kwargs, batch)
            recorder = self._recorder(batch)
            with eagerly(), Capture(self._parameters, recorder, None, lambda call: plan.layout(call, batch)):
                return original(*args, **kwargs)
        except NotCoveredError as reason:
            remedy = "use the function grad_stats, which takes such models through torch.func"
            raise InputError("model", str(reason), remedy) from reason

    def _recorder(self, batch: int) -> FormRecorder:
        """That of the step under way; a call after its backward pass has begun opens a new step."""
        if not self._batches or self._batches[-1][1].started or self._batches[-1][0].batch != batch:
            held, request = self._begin(batch)
            recorder = FormRecorder(
                self._parameters, batch, lambda name, form: held.take(request, name, form), hand_on=True
            )
            self._batches.append((held, recorder))
        return self._batches[-1][1]

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> Plan:
        key = plan_key(self._model, (args, kwargs))
        if key not in self._plans:
            self._probing = True
            try:
                self._plans[key] = probe(
                    self._parameters, batch, lambda indices: self._run(args, kwargs, indices, batch)
                )
            finally:
                self._probing = False
        return self._plans[key]

    def _run(self, args: Any, kwargs: Any, indices: Tensor, batch: int) -> tuple[Tensor, Any]:
        """Some samples, with a loss that depends on every output of its own sample."""
        some, named = taken((args, kwargs), indices, batch)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        output = torch.func.functional_call(self._model, buffers, some, named)
        losses = torch.zeros(len(indices), device=indices.device)
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.ndim and leaf.shape[0] == len(indices):
                losses = losses + (leaf.flatten(1) if leaf.ndim > 1 else leaf[:, None]).sin().sum(1)
        return losses, output


def _batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise InputError("model", "was called without a tensor", "its first tensor tells the size of the batch")
