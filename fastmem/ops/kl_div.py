"""Kullback-Leibler divergence of two classifiers' predictions, sample by sample, from their logits.

``KL(P || Q)`` with ``P = softmax(p/T)`` and ``Q = softmax(q/T)``, in nats. It is the distance by which a distilled, an
unlearned or a fine-tuned model is compared with its original (temperature: Hinton, Vinyals and Dean 2015,
arXiv:1503.02531), and near convergence the two differ so little that the textbook sum ``sum P (log P - log Q)`` in
float32 is all rounding error, down to negative results. Every implementation here keeps a relative error of at most
1e-5 for KL between 1e-7 and 50, also with logits that are offset from each other by 100.

Roof: memory traffic. With B rows of C classes of e bytes, forward reads ``2 B C e`` bytes and writes 16 B; backward
reads them again and writes ``B C e`` for each side wanted. One operand shared by R rows is read once: ``(1 + R) B C e``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._checks import (
    accumulation_dtype,
    positive_number,
    require_dtype,
    require_same_device,
    require_tensor,
)
from fastmem.ops._modes import FIRST_ORDER_ONLY, dispatched, to_front, transformed
from fastmem.ops._registry import Backend, current_setting, select

__all__ = ["kl_div"]


def kl_div(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence ``KL(softmax(p/T) || softmax(q/T))`` of every row of logits, in nats.

    Leading dimensions broadcast without being materialised: ``[B, 1, C]`` against ``[B, K, C]`` reads the shared side
    once. Both sides are differentiable, ``dKL/dp = P (u - KL) / T`` and ``dKL/dq = (Q - P) / T`` with
    ``u = log P - log Q``; gradients sum over broadcast rows. Derivatives are first-order;
    ``use_backend("reference")`` gives higher orders, forward mode and every ``torch.func`` transform.

    What special values mean, row by row:

    ==============================================  ==========================================================
    a logit of p is -inf                            its term is Q_c (p gives that class no mass)
    a logit is -inf in both                         its term is 0
    a logit of q is -inf where that of p is finite  +inf
    NaN, +inf, or nothing but -inf in a row         NaN (the softmax does not exist)
    one class (C = 1)                               0
    no rows                                         an empty result
    the KL is NaN or +inf                           the gradients of that row are NaN, on both sides
    ==============================================  ==========================================================

    Args:
        p_logits: ``[..., C]`` float16, bfloat16, float32 or float64, any strides, C >= 1.
        q_logits: ``[..., C]``, the same device and C; leading dimensions broadcast against those of ``p_logits``. Of
            two dtypes the narrower operand is promoted (``torch.promote_types``). Autocast changes nothing here.
        temperature: Both logits are divided by it; finite and above 0.

    Returns:
        The divergences, of the broadcast leading shape and contiguous; float64 for float64 operands, float32 for
        narrower ones, in which sums are accumulated too.

    Raises:
        InputError: An operand is no plain dense floating tensor (subclass, sparse, quantised, conjugate or negative
            bit), the devices, class counts or leading dimensions do not fit, or the temperature is not positive; or a
            forced backend cannot run on these arguments.
    """
    p, q, temperature = forward_arguments(p_logits, q_logits, temperature)
    if transformed():
        return _kl_div_transformed(p, q, temperature)
    if dispatched():
        return torch.ops.fastmem.kl_div_forward.default(p, q, temperature)[0]
    backend = select("kl_div", p, q, temperature)
    if not (torch.is_grad_enabled() and (p.requires_grad or q.requires_grad)):
        return backend.forward(p, q, temperature)[0] if backend.value is None else backend.value(p, q, temperature)
    if current_setting() == "reference":  # asked for, not fallen back to: then any order, at the memory it takes
        return _reference_differentiable(p, q, temperature)
    return _Eager.apply(p, q, temperature, backend)


def forward_arguments(p_logits: Any, q_logits: Any, temperature: Any = 1.0) -> tuple[Tensor, Tensor, float]:
    """Check a public call and bring the operands to one dtype and one number of dimensions, as views."""
    for argument, logits in (("p_logits", p_logits), ("q_logits", q_logits)):
        require_tensor(argument, logits)
        require_dtype(argument, logits)
        if logits.ndim == 0 or logits.shape[-1] == 0:
            raise InputError(argument, f"has shape {list(logits.shape)}", "give [..., C] with at least one class")
    p, q = p_logits, q_logits
    require_same_device("q_logits", q, "p_logits", p)
    if p.shape != q.shape:
        _require_broadcastable(p, q)
        ndim = max(p.ndim, q.ndim)
        p, q = _with_ndim(p, ndim), _with_ndim(q, ndim)
    if p.dtype != q.dtype:
        dtype = torch.promote_types(p.dtype, q.dtype)
        p, q = p.to(dtype), q.to(dtype)
    return p, q, positive_number("temperature", temperature)


def _require_broadcastable(p: Tensor, q: Tensor) -> None:
    shapes = f"has shape {list(q.shape)} against p_logits of {list(p.shape)}"
    if p.shape[-1] != q.shape[-1]:
        raise InputError("q_logits", shapes, "the last dimension (classes) must be equal")
    for size_p, size_q in zip(reversed(p.shape[:-1]), reversed(q.shape[:-1]), strict=False):
        if size_p != size_q and size_p != 1 and size_q != 1:
            raise InputError("q_logits", shapes, "leading dimensions must be equal or 1 (broadcasting)")


def _with_ndim(tensor: Tensor, ndim: int) -> Tensor:
    return tensor[(None,) * (ndim - tensor.ndim)] if tensor.ndim < ndim else tensor


def _reference_differentiable(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    from fastmem.ops.reference.kl_div import differentiable

    return differentiable(p, q, temperature)


class _Eager(torch.autograd.Function):
    """Eager mode with gradients: straight to the chosen implementation and back."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, temperature: float, backend: Backend) -> Tensor:
        kl, *rows = backend.forward(p, q, temperature)
        ctx.save_for_backward(p, q, kl, *rows)
        ctx.temperature, ctx.backend = temperature, backend
        return kl

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*grad_outputs, *ctx.saved_tensors, ctx.temperature, *ctx.needs_input_grad[:2], ctx.backend)
        # With gradients enabled here, a second differentiation is in preparation: it must meet the refusal.
        dp, dq = _Gradient.apply(*arguments) if torch.is_grad_enabled() else _Gradient.forward(*arguments)
        return dp, dq, None, None


# Within torch.func transforms the tensors are wrapped: once unwrapped they go through the dispatcher, which chooses.


def _kl_div_transformed(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    if current_setting() == "reference":
        return _reference_differentiable(p, q, temperature)
    return _Transformed.apply(p, q, temperature)[0]


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, ...]:
        return torch.ops.fastmem.kl_div_forward.default(p, q, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        p, q, ctx.temperature = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(p, q, *output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        dp, dq = _Gradient.apply(grad_outputs[0], *ctx.saved_tensors, ctx.temperature, *needs, None)
        return dp, dq, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _Transformed.apply(*to_front(info.batch_size, in_dims, args)), (0, 0, 0, 0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(f"kl_div: {FIRST_ORDER_ONLY}")


class _Gradient(torch.autograd.Function):
    """The backward pass as a function of its own, which transforms map over and which refuses its derivative."""

    @staticmethod
    def forward(*arguments_and_backend: Any) -> tuple[Tensor | None, Tensor | None]:
        *arguments, backend = arguments_and_backend
        return backend.backward(*arguments) if backend is not None else _dispatch_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> None:
        raise RuntimeError(f"kl_div: {FIRST_ORDER_ONLY}")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        dp, dq = _Gradient.apply(*to_front(info.batch_size, in_dims, args))
        return (dp, dq), (None if dp is None else 0, None if dq is None else 0)


# The operator as PyTorch's dispatcher sees it: torch.compile, export, fake tensors, vmap. The implementation is chosen
# when it runs, in the backward pass once more: what forward saves means the same to every implementation.

torch.library.define(
    "fastmem::kl_div_forward",
    "(Tensor p, Tensor q, float temperature) -> (Tensor kl, Tensor lse_p, Tensor centre, Tensor shift)",
)
torch.library.define(
    "fastmem::kl_div_backward",
    "(Tensor grad, Tensor p, Tensor q, Tensor kl, Tensor lse_p, Tensor centre, Tensor shift, float temperature,"
    " bool need_p, bool need_q) -> (Tensor dp, Tensor dq)",
)


def _forward(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return select("kl_div", p, q, temperature).forward(p, q, temperature)


def _forward_fake(p: Tensor, q: Tensor, temperature: float) -> tuple[Tensor, ...]:
    leading = torch.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    return tuple(p.new_empty(leading, dtype=accumulation_dtype(p.dtype)) for _ in range(4))


def _backward(grad: Tensor, p: Tensor, q: Tensor, *saved_and_options: Any) -> tuple[Tensor, Tensor]:
    *_, temperature, _need_p, _need_q = saved_and_options
    backward = select("kl_div", p, q, temperature).backward
    assert backward is not None  # every implementation of this operator has one
    dp, dq = backward(grad, p, q, *saved_and_options)
    return (p.new_empty(0) if dp is None else dp), (q.new_empty(0) if dq is None else dq)


def _dispatch_backward(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    *_, need_p, need_q = arguments
    dp, dq = torch.ops.fastmem.kl_div_backward.default(*arguments)
    return (dp if need_p else None), (dq if need_q else None)


def _backward_fake(grad: Tensor, p: Tensor, q: Tensor, *saved_and_options: Any) -> tuple[Tensor, Tensor]:
    *_, need_p, need_q = saved_and_options
    return p.new_empty(p.shape if need_p else 0), q.new_empty(q.shape if need_q else 0)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    p, q, ctx.temperature = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(p, q, *output)


def _differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
    if grad is None:
        return None, None, None
    return *_dispatch_backward(grad, *ctx.saved_tensors, ctx.temperature, *ctx.needs_input_grad[:2]), None


def _refuse_second_order(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f"kl_div: {FIRST_ORDER_ONLY}")


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return torch.ops.fastmem.kl_div_forward.default(*to_front(info.batch_size, in_dims, args)), (0, 0, 0, 0)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    *_, need_p, need_q = args
    grads = torch.ops.fastmem.kl_div_backward.default(*to_front(info.batch_size, in_dims, args))
    return grads, (0 if need_p else None, 0 if need_q else None)


torch.library.impl("fastmem::kl_div_forward", "CompositeExplicitAutograd", _forward)
torch.library.impl("fastmem::kl_div_backward", "CompositeExplicitAutograd", _backward)
torch.library.register_fake("fastmem::kl_div_forward", _forward_fake)
torch.library.register_fake("fastmem::kl_div_backward", _backward_fake)
torch.library.register_autograd("fastmem::kl_div_forward", _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd("fastmem::kl_div_backward", _refuse_second_order)
torch.library.register_vmap("fastmem::kl_div_forward", _forward_vmap)
torch.library.register_vmap("fastmem::kl_div_backward", _backward_vmap)
