"""Two samples through the model before the batch: where does the batch lie, and do samples stay apart?

The loss of one sample is differentiated alone. At every covered call the gradient must vanish for the other samples;
the dimension in which it does is the batch's. A gradient that reaches another sample means that the loss of one sample
depends on others, by the loss function or within the model, and then no sample has a gradient of its own: refused.
Coupling that leaves every gradient alone (such as normalising the input by its batch) is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointError

from fastmem.errors import InputError
from fastmem.ops._layers.capture import Call, Capture, NotCoveredError, eagerly
from fastmem.ops._layers.layout import Layout, candidates

__all__ = ["Plan", "plan_key", "probe", "require_losses", "taken"]

#: Runs the model on some samples (their indices) and returns per-sample losses and the model's output.
Run = Callable[[Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class _Planned:
    title: str
    shape: tuple[int, ...]
    layouts: tuple[Layout, ...]


@dataclass(frozen=True)
class Plan:
    """What two samples told about every covered call of a forward pass, in order."""

    calls: tuple[_Planned, ...]

    def layout(self, call: Call, batch: int) -> Layout:
        """Where the batch lies in this call of a forward pass of ``batch`` samples.

        Raises:
            NotCoveredError: It cannot be told.
        """
        planned = self.calls[call.index] if call.index < len(self.calls) else None
        if planned is None or planned.title != call.title:
            raise NotCoveredError(f"{call.title}: the model's calls change from batch to batch")
        fitting = [layout for layout in planned.layouts if _scaled(planned.shape, layout, batch) == call.output_shape]
        if len(fitting) != 1:
            why = "no dimension follows the batch" if not fitting else "the batch may lie in several dimensions"
            raise NotCoveredError(f"{call.title} on an output of shape {list(call.output_shape)}: {why}")
        return fitting[0]


def _scaled(shape: tuple[int, ...], layout: Layout, batch: int) -> torch.Size:
    return torch.Size((*shape[: layout.dim], layout.repeats * batch, *shape[layout.dim + 1 :]))


@dataclass
class _Probing:
    """A recorder that keeps every call and the gradient at its output."""

    calls: list[Call] = field(default_factory=list)
    deltas: dict[int, Tensor] = field(default_factory=dict)

    def called(self, call: Call) -> None:
        self.calls.append(call)

    def returned(self, call: Call, x: Tensor, delta: Tensor) -> tuple[None, None]:
        self.deltas[call.index] = delta
        return None, None


def probe(parameters: Mapping[str, nn.Parameter], batch: int, run: Run) -> Plan:
    """Run two samples (three if the batch has two) and find every call's layout.

    Raises:
        NotCoveredError: A parameter's use has no rule, or its batch cannot be told.
        InputError: ``loss_fn`` returns no losses per sample, or the loss of one sample depends on another.
    """
    size = 3 if batch == 2 else 2
    seen = _observe(parameters, batch, size, size - 1, run)
    planned = []
    for call in seen.calls:
        layouts = candidates(call.output_shape, call.arguments.leading, size)
        delta = seen.deltas.get(call.index)
        if delta is not None:
            layouts = [layout for layout in layouts if _apart(delta, layout, size)]
        if not layouts:
            _explain_failure(parameters, batch, size, call, run)
        planned.append(_Planned(call.title, tuple(call.output_shape), tuple(layouts)))
    return Plan(tuple(planned))


def _observe(parameters: Mapping[str, nn.Parameter], batch: int, size: int, sample: int, run: Run) -> _Probing:
    """Differentiate the loss of one sample of ``size``."""
    seen = _Probing()
    some = next(iter(parameters.values()))
    anchor = torch.zeros((), device=some.device, requires_grad=True)
    indices = torch.arange(size, device=some.device) % batch
    cuda = [some.device] if some.is_cuda else []
    with torch.random.fork_rng(cuda), eagerly():
        try:
            with Capture(parameters, seen, anchor):
                losses, output = run(indices)
            require_losses(losses, size)
            outputs = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
            ends = [anchor, *parameters.values(), *outputs]
            found = torch.autograd.grad(losses[sample], ends, allow_unused=True) if losses.requires_grad else ()
        except CheckpointError as error:
            raise NotCoveredError(
                "the model runs parts of itself again in the backward pass (checkpointing)"
            ) from error
    _require_loss_apart(found[1 + len(parameters) :], size, sample)
    for name, gradient in zip(parameters, found[1 : 1 + len(parameters)], strict=False):
        if gradient is not None:
            raise NotCoveredError(
                f"{name!r} reaches the loss by a way that cannot be watched (a custom autograd function?)"
            )
    return seen


def require_losses(losses: Any, batch: int) -> None:
    """Refuse anything but one loss a sample."""
    if not isinstance(losses, Tensor):
        raise InputError("loss_fn", f"returned {type(losses).__name__}", f"return a tensor of losses [{batch}]")
    if losses.shape != (batch,):
        shape = f"returned shape {list(losses.shape)} for {batch} samples"
        if losses.ndim == 0:
            raise InputError("loss_fn", f"{shape}: it is reduced over the batch", "use reduction='none'")
        raise InputError("loss_fn", shape, f"return one loss a sample, [{batch}] (sum over positions)")
    if not losses.is_floating_point():
        raise InputError("loss_fn", f"returned dtype {losses.dtype}", "return floating losses")


def _require_loss_apart(gradients: Sequence[Tensor | None], size: int, sample: int) -> None:
    for gradient in gradients:
        if gradient is not None and gradient.ndim and gradient.shape[0] == size:
            others = torch.arange(size, device=gradient.device) != sample
            if _reaches(gradient[others]):
                raise InputError(
                    "loss_fn",
                    "the loss of one sample depends on the outputs of others",
                    "compute every sample's loss from its own output",
                )


def _apart(delta: Tensor, layout: Layout, size: int) -> bool:
    """Whether the gradient of the last sample's loss vanishes for the others."""
    return not _reaches(layout.apply(delta, size)[:-1])


def _reaches(gradient: Tensor) -> bool:
    return bool(((gradient != 0) & ~gradient.isnan()).any())


def _explain_failure(parameters: Mapping[str, nn.Parameter], batch: int, size: int, failed: Call, run: Run) -> None:
    """No layout keeps samples apart at this call: is it the batch's shape, or do samples meet?"""
    index = failed.index
    first, last = (_observe(parameters, batch, size, sample, run) for sample in (0, size - 1))
    larger = _observe(parameters, batch, size + 1, 0, run)
    if len(larger.calls) <= index or index not in first.deltas or index not in last.deltas:
        raise NotCoveredError(f"{failed.title}: the model's calls change from batch to batch")
    after = larger.calls[index].output_shape
    changed = [dim for dim, sizes in enumerate(zip(failed.output_shape, after, strict=True)) if sizes[0] != sizes[1]]
    if not changed:
        raise NotCoveredError(f"{failed.title} is called once for the whole batch")
    dim = changed[0]
    meets = bool((_touched(first.deltas[index], dim) & _touched(last.deltas[index], dim)).any())
    if not meets or dim >= failed.arguments.leading:
        raise NotCoveredError(
            f"{failed.title} on an output of shape {list(failed.output_shape)}: its batch cannot be told"
        )
    raise InputError(
        "model",
        f"the loss of one sample depends on other samples through {failed.title}",
        "per-sample gradients need a model that treats samples apart",
    )


def plan_key(model: nn.Module, *trees: Any) -> tuple[Any, ...]:
    """Calls of equal keys take the same way through a model: shapes and dtypes, and which modules are in training."""
    leaves, spec = pytree.tree_flatten(trees)
    said = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)
    return str(spec), said, tuple(module.training for module in model.modules())


def _touched(delta: Tensor, dim: int) -> Tensor:
    return (delta != 0).movedim(dim, 0).flatten(1).any(1)


def taken(tree: Any, indices: Tensor, batch: int) -> Any:
    """The samples ``indices`` of every tensor in a tree whose first dimension is the batch."""

    def take(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == batch:
            return leaf.detach()[indices.to(leaf.device)]
        return leaf

    return pytree.tree_map(take, tree)
