"""What a classifier says about one label of a sample: log-odds margin, loss, hinge, confidence and entropy.

They are the statistics that membership attacks read. The margin ``log p_y - log(1 - p_y) = z_y - logsumexp of the
others`` is the logit-scaled confidence of Carlini et al. 2022 (LiRA, arXiv:2112.03570), which is close to Gaussian over
models; computed from the probabilities it would be infinite for every confident sample, computed so it never is.

Roof: memory traffic. One read of the logits gives all five: ``B C e`` bytes for B rows of C classes of e bytes, 8 B for
the labels and 4 B for each result; backward reads the logits again and writes as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import accumulation_dtype, require_dtype, require_same_device, require_tensor
from fastmem.ops._modes import FIRST_ORDER_ONLY, dispatched, to_front, transformed
from fastmem.ops._registry import Backend, current_setting, select

__all__ = ["LogitStats", "logit_margin", "logit_stats"]

_LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LogitStats(NamedTuple):
    """Statistics of every row of logits, each of shape ``[...]``.

    Attributes:
        margin: ``log p_y - log(1 - p_y)``, the log-odds of the label (nats). Higher: more likely a member.
        loss: ``-log p_y = softplus(-margin)``, the cross-entropy (nats).
        hinge: ``z_y - max over c != y of z_c``.
        max_prob: The largest probability of any class.
        entropy: ``-sum p log p`` (nats).
    """

    margin: Tensor
    loss: Tensor
    hinge: Tensor
    max_prob: Tensor
    entropy: Tensor


def logit_stats(logits: Tensor, labels: Tensor) -> LogitStats:
    """Margin, loss, hinge, max_prob and entropy of every row of logits, in one read of them.

    All five are differentiable with respect to the logits; of several equal largest logits the one of the lowest index
    gets the gradient of hinge and max_prob. Derivatives are first-order; ``use_backend("reference")`` gives higher
    orders, forward mode and every ``torch.func`` transform.

    What special values mean, row by row:

    =====================================  ============  =====  ============  ================
    the row                                margin,       loss   max_prob,     gradient of
                                           hinge                entropy       the row
    =====================================  ============  =====  ============  ================
    -inf at other classes than the label   finite        ..     finite        finite, 0 there
    -inf at the label                      -inf          +inf   finite        NaN
    -inf at all others                     +inf          0      1 and 0       NaN
    +inf at the label only                 +inf          0      NaN           NaN
    +inf at others only                    -inf          +inf   NaN           NaN
    +inf at both; nothing but -inf; a NaN  NaN           NaN    NaN           NaN
    =====================================  ============  =====  ============  ================

    Args:
        logits: ``[..., C]`` float16, bfloat16, float32 or float64, any strides, C >= 2.
        labels: Integers from 0 to C - 1 on the same device; their shape broadcasts to ``logits.shape[:-1]`` (one
            ``[N]`` serves ``[M, N, C]``). Checking their range reads one pair of numbers back from the device; within
            ``torch.compile`` and ``torch.func`` transforms it is not checked, and a label out of range gives NaN.

    Returns:
        The five statistics, each of shape ``logits.shape[:-1]`` and contiguous; float64 for float64 logits, float32
        for narrower ones. Autocast changes nothing here.

    Raises:
        InputError: The logits are no plain dense floating tensor, have fewer than two classes, or the labels are not
            integers, out of range, on another device or of a shape that does not broadcast to the rows of logits; or
            a forced backend cannot run on these arguments.
    """
    return LogitStats(*_call(logits, labels, margin_only=False))


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``log p_y - log(1 - p_y)`` of every row of logits: the margin of :func:`logit_stats` alone, and its contract.

    Args:
        logits: ``[..., C]``, as for :func:`logit_stats`.
        labels: Integers whose shape broadcasts to ``logits.shape[:-1]``, as for :func:`logit_stats`.

    Returns:
        The margins in nats, of shape ``logits.shape[:-1]``. Higher: more likely a member.

    Raises:
        InputError: As :func:`logit_stats`.
    """
    return _call(logits, labels, margin_only=True)[0]


def _call(logits: Tensor, labels: Tensor, margin_only: bool) -> Sequence[Tensor]:
    logits, labels, _ = forward_arguments(logits, labels, margin_only)
    if transformed():
        return _call_transformed(logits, labels, margin_only)
    if dispatched():
        return _dispatch_forward(logits, labels, margin_only)
    _require_labels_in_range(labels, logits.shape[-1])
    backend = select("logit_stats", logits, labels, margin_only)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return backend.forward(logits, labels, margin_only)
    if current_setting() == "reference":  # asked for, not fallen back to: then any order, at the memory it takes
        return _reference_differentiable(logits, labels, margin_only)
    return _Eager.apply(logits, labels, margin_only, backend)


def forward_arguments(logits: Any, labels: Any, margin_only: bool = False) -> tuple[Tensor, Tensor, bool]:
    """Check a public call, all but the labels' range, and give labels as many dimensions as logits have leading ones."""
    require_tensor("logits", logits)
    require_dtype("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise InputError("logits", f"has shape {list(logits.shape)}", "give [..., C] with at least two classes")
    require_tensor("labels", labels)
    require_dtype("labels", labels, _LABEL_DTYPES)
    require_same_device("labels", labels, "logits", logits)
    leading = logits.shape[:-1]
    if labels.shape != leading:
        _require_broadcastable(labels, logits)
        labels = labels[(None,) * (len(leading) - labels.ndim)]
    return logits, labels.long(), margin_only


def _require_broadcastable(labels: Tensor, logits: Tensor) -> None:
    leading = logits.shape[:-1]
    pairs = zip(reversed(labels.shape), reversed(leading), strict=False)
    if labels.ndim > len(leading) or any(given not in (size, 1) for given, size in pairs):
        raise InputError(
            "labels",
            f"has shape {list(labels.shape)} against logits of {list(logits.shape)}",
            f"give a shape that broadcasts to {list(leading)}",
        )


def _require_labels_in_range(labels: Tensor, num_classes: int) -> None:
    if labels.numel() == 0 or labels.device.type == "meta":
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        given = low if low < 0 else high
        raise InputError("labels", f"holds {given}", f"give classes from 0 to {num_classes - 1}")


def _reference_differentiable(logits: Tensor, labels: Tensor, margin_only: bool) -> Any:
    from fastmem.ops.reference.logit_stats import differentiable

    return differentiable(logits, labels, margin_only)


class _Eager(torch.autograd.Function):
    """Eager mode with gradients: straight to the chosen implementation and back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, margin_only: bool, backend: Backend) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, labels)
        ctx.backend = backend
        return _wanted(backend, logits, labels, margin_only)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments: list[Any] = [*ctx.saved_tensors, ctx.backend, *grad_outputs]
        # With gradients enabled here, a second differentiation is in preparation: it must meet the refusal.
        gradient = _Gradient.apply(*arguments) if torch.is_grad_enabled() else _Gradient.forward(*arguments)
        return gradient, None, None, None


def _five(grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return (*grads, None, None, None, None)[:5]


def _run_backward(backend: Backend, logits: Tensor, labels: Tensor, grads: Sequence[Tensor | None]) -> Tensor:
    assert backend.backward is not None  # every implementation of this operator has one
    return backend.backward(_five(grads), logits, labels)


def _wanted(backend: Backend, logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor, ...]:
    return tuple(backend.forward(logits, labels, margin_only)[: 1 if margin_only else 5])


# Within torch.func transforms the tensors are wrapped: once unwrapped they go through the dispatcher, which chooses.


def _call_transformed(logits: Tensor, labels: Tensor, margin_only: bool) -> Sequence[Tensor]:
    if current_setting() == "reference":
        return _reference_differentiable(logits, labels, margin_only)
    return _Transformed.apply(logits, labels, margin_only)


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor, ...]:
        return _dispatch_forward(logits, labels, margin_only)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return _Gradient.apply(*ctx.saved_tensors, None, *grad_outputs), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        outputs = _Transformed.apply(*to_front(info.batch_size, in_dims, args))
        return outputs, (0,) * len(outputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(f"logit_stats: {FIRST_ORDER_ONLY}")


class _Gradient(torch.autograd.Function):
    """The backward pass as a function of its own, which transforms map over and which refuses its derivative."""

    @staticmethod
    def forward(logits: Tensor, labels: Tensor, backend: Backend | None, *grads: Tensor | None) -> Tensor:
        if backend is None:
            return torch.ops.fastmem.logit_stats_backward.default(logits, labels, *_five(grads))
        return _run_backward(backend, logits, labels, grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> None:
        raise RuntimeError(f"logit_stats: {FIRST_ORDER_ONLY}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _Gradient.apply(*to_front(info.batch_size, in_dims, args)), 0


# The operator as PyTorch's dispatcher sees it: torch.compile, export, fake tensors, vmap. The implementation is chosen
# when it runs, and in the backward pass once more.

torch.library.define("fastmem::logit_margin_forward", "(Tensor logits, Tensor labels) -> Tensor")
torch.library.define(
    "fastmem::logit_stats_forward",
    "(Tensor logits, Tensor labels) -> (Tensor margin, Tensor loss, Tensor hinge, Tensor max_prob, Tensor entropy)",
)
torch.library.define(
    "fastmem::logit_stats_backward",
    "(Tensor logits, Tensor labels, Tensor? margin, Tensor? loss, Tensor? hinge, Tensor? max_prob, Tensor? entropy)"
    " -> Tensor",
)


def _dispatch_forward(logits: Tensor, labels: Tensor, margin_only: bool) -> tuple[Tensor, ...]:
    if margin_only:
        return (torch.ops.fastmem.logit_margin_forward.default(logits, labels),)
    return torch.ops.fastmem.logit_stats_forward.default(logits, labels)


def _margin_forward(logits: Tensor, labels: Tensor) -> Tensor:
    return _wanted(select("logit_stats", logits, labels, True), logits, labels, True)[0]


def _stats_forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return _wanted(select("logit_stats", logits, labels, False), logits, labels, False)


def _backward(logits: Tensor, labels: Tensor, *grads: Tensor | None) -> Tensor:
    margin_only = all(grad is None for grad in grads[1:])
    return _run_backward(select("logit_stats", logits, labels, margin_only), logits, labels, grads)


def _margin_fake(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=accumulation_dtype(logits.dtype))


def _stats_fake(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return tuple(_margin_fake(logits, labels) for _ in LogitStats._fields)


def _backward_fake(logits: Tensor, labels: Tensor, *grads: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
    return torch.ops.fastmem.logit_stats_backward.default(*ctx.saved_tensors, *_five(grads)), None


def _refuse_second_order(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f"logit_stats: {FIRST_ORDER_ONLY}")


def _mapped(name: str, out_dims: int | tuple[int, ...]) -> Callable[..., Any]:
    """The rule of vmap for an operator of this namespace: its leading dimensions map already."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return getattr(torch.ops.fastmem, name).default(*to_front(info.batch_size, in_dims, args)), out_dims

    return rule


for _name, _implementation, _fake, _out_dims in (
    ("logit_margin_forward", _margin_forward, _margin_fake, 0),
    ("logit_stats_forward", _stats_forward, _stats_fake, (0,) * 5),
    ("logit_stats_backward", _backward, _backward_fake, 0),
):
    torch.library.impl(f"fastmem::{_name}", "CompositeExplicitAutograd", _implementation)
    torch.library.register_fake(f"fastmem::{_name}", _fake)
    torch.library.register_vmap(f"fastmem::{_name}", _mapped(_name, _out_dims))
torch.library.register_autograd("fastmem::logit_margin_forward", _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd("fastmem::logit_stats_forward", _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd("fastmem::logit_stats_backward", _refuse_second_order)
