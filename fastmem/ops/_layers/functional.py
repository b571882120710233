"""Per-sample gradients of any model, a few samples at a time: by ``torch.func``, or one backward pass a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree

from fastmem.ops._layers.capture import eagerly
from fastmem.ops._layers.forms import CHUNK_BYTES
from fastmem.ops._layers.probe import require_losses

__all__ = ["Functional"]


class Functional:
    """Gradients of ranges of samples.

    Each sample goes through the model as a batch of one; layers that look at the batch see just that.

    Args:
        model: The model.
        loss_fn: Outputs and targets to losses [B].
        parameters: The trainable parameters by name.
        inputs: Positional arguments of the model, every tensor with the batch first.
        targets: Passed to ``loss_fn``, every tensor with the batch first.
        batch: B.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        parameters: Mapping[str, nn.Parameter],
        inputs: tuple[Any, ...],
        targets: Any,
        batch: int,
    ) -> None:
        self._model, self._loss_fn, self._parameters = model, loss_fn, dict(parameters)
        self._inputs, self._targets, self.batch = inputs, targets, batch
        self.why_not_mapped = self._try_mapping()

    def chunk(self) -> int:
        """How many samples are computed at a time."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self._parameters.values())
        return max(4, CHUNK_BYTES // max(1, size))  # of big models, a few together still run faster

    def chunks(self, start: int = 0) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """First sample and gradients ``[b, *param.shape]`` by name, chunk by chunk."""
        size = self.chunk()
        for first in range(start, self.batch, size):
            yield first, self.grads(first, min(first + size, self.batch))

    def grads(self, start: int, stop: int) -> dict[str, Tensor]:
        """Gradients of samples start..stop-1 by name."""
        return (self._mapped if self.why_not_mapped is None else self._looped)(start, stop)

    def _try_mapping(self) -> str | None:
        if self.batch == 0:
            return None
        device = next(iter(self._parameters.values())).device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._mapped(0, 1)
                if self._goes_around():
                    return "the loss function uses the model's parameters by itself"
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            # What is wrong with the model itself comes up again, in full, in the loop.
            return f"torch.func cannot map it ({str(error).strip().splitlines()[0] if str(error) else error!r})"
        return None

    def _goes_around(self) -> bool:
        """Whether a loss still depends on the parameters when the model runs on copies of them."""
        copies = {name: tensor.detach() for name, tensor in self._model.named_parameters()}
        copies |= {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        inputs, targets = self._sliced(0, 1)
        with eagerly():
            losses = self._loss_fn(functional_call(self._model, copies, inputs), targets)
            if not losses.requires_grad:
                return False
            found = torch.autograd.grad(losses.sum(), list(self._parameters.values()), allow_unused=True)
        return any(gradient is not None for gradient in found)

    def _mapped(self, start: int, stop: int) -> dict[str, Tensor]:
        # Buffers that the model writes to are copies, and stay as they were.
        rest = {
            name: tensor.detach() for name, tensor in self._model.named_parameters() if name not in self._parameters
        }
        rest |= {name: buffer.clone() for name, buffer in self._model.named_buffers()}

        def loss_of_one(parameters: dict[str, Tensor], inputs: tuple[Any, ...], targets: Any) -> Tensor:
            one = pytree.tree_map_only(Tensor, lambda leaf: leaf[None], (inputs, targets))
            losses = self._loss_fn(functional_call(self._model, (parameters, rest), one[0]), one[1])
            require_losses(losses, 1)
            return losses[0]

        leaves, spec = pytree.tree_flatten(self._sliced(start, stop))
        dims = [0 if isinstance(leaf, Tensor) else None for leaf in leaves]

        def flat(parameters: dict[str, Tensor], *leaves: Any) -> Tensor:
            return loss_of_one(parameters, *pytree.tree_unflatten(list(leaves), spec))

        detached = {name: parameter.detach() for name, parameter in self._parameters.items()}
        with eagerly():
            return vmap(grad(flat), in_dims=(None, *dims), randomness="different")(detached, *leaves)

    def _looped(self, start: int, stop: int) -> dict[str, Tensor]:
        found = {
            name: parameter.new_zeros((stop - start, *parameter.shape)) for name, parameter in self._parameters.items()
        }
        for sample in range(start, stop):
            inputs, targets = self._sliced(sample, sample + 1)
            with eagerly():
                losses = self._loss_fn(self._output(inputs), targets)
                require_losses(losses, 1)
                if not losses.requires_grad:
                    continue
                gradients = torch.autograd.grad(losses[0], list(self._parameters.values()), allow_unused=True)
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    found[name][sample - start] = gradient
        return found

    def _output(self, inputs: tuple[Any, ...]) -> Any:
        if isinstance(self._model, torch.jit.ScriptModule):
            return self._model(*inputs)
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        return functional_call(self._model, buffers, inputs)

    def _sliced(self, start: int, stop: int) -> tuple[tuple[Any, ...], Any]:
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach()[start:stop], (self._inputs, self._targets))
