"""Statistics of the per-sample gradients of one layer's weight, without ever holding those gradients.

The gradient of sample i at the weight of a convolution, or of a linear layer applied along a sequence, is
``g_i = sum_t delta_it u_it^T``: over the positions t of the output, with u the patch of the input that the kernel sees
there. Its square or absolute value does not factor into the operands, so every ``g_i`` has to be formed; but a tile of
it lives no longer than it takes to add ``f(g_i)`` to the sums.

Roof: arithmetic. ``2 B O K T`` operations for a weight of ``[O, K]``, B samples and T positions, which is one plain
weight gradient, whatever number of statistics is asked for; ``4 n P`` bytes of results for n sums over P weights.
(Identities and costs of such sums: Dangel, Kunstner and Hennig 2020, arXiv:1912.10985; norms without gradients:
Rochette, Manoel and Tramel 2019, arXiv:1912.06015.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import require_dtype, require_same_device, require_tensor
from fastmem.ops._registry import select

__all__ = ["STATS", "LayerGradStats", "layer_grad_stats"]

#: The statistics, in the order of the fields of :class:`LayerGradStats`.
STATS = ("sum", "sum_sq", "sum_abs", "norm_sq")


class LayerGradStats(NamedTuple):
    """What was asked for; the rest is ``None``.

    Attributes:
        sum: Sum over the samples of ``g_i``, of the weight's shape: the plain gradient.
        sum_sq: Sum over the samples of ``g_i^2``, of the weight's shape.
        sum_abs: Sum over the samples of ``|g_i|``, of the weight's shape.
        norm_sq: Squared Euclidean norm of every ``g_i``, ``[B]``.
    """

    sum: Tensor | None
    sum_sq: Tensor | None
    sum_abs: Tensor | None
    norm_sq: Tensor | None


@torch.no_grad()
def layer_grad_stats(
    a: Tensor,
    delta: Tensor,
    stats: Collection[str],
    *,
    kernel_size: tuple[int, int] | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> LayerGradStats:
    """Sums over the samples of functions of each sample's weight gradient, and their norms.

    Args:
        a: The layer's input: ``[B, Cin, H, W]`` of a convolution (one-dimensional: ``H = 1``), or ``[B, T, K]`` of a
            linear layer along a sequence. float16, bfloat16, float32 or float64; any strides.
        delta: Gradient of the **sum** of the samples' losses at the layer's output: ``[B, O, Ho, Wo]`` or
            ``[B, T, O]``, of ``a``'s dtype and device; any strides. (Of a mean over B, multiply by B first.)
        stats: Which of ``"sum"``, ``"sum_sq"``, ``"sum_abs"`` and ``"norm_sq"``.
        kernel_size: ``(kh, kw)`` of a convolution, ``None`` for a linear layer. The options after it are a
            convolution's only.
        stride: As of :func:`torch.nn.functional.conv2d`.
        padding: With zeros. Where a layer pads with anything else, give the padded input and ``(0, 0)``.
        dilation: As of :func:`torch.nn.functional.conv2d`.
        groups: As of :func:`torch.nn.functional.conv2d`.

    Returns:
        The statistics, the sums of shape ``[O, Cin / groups, kh, kw]`` or ``[O, K]``: float64 for float64 operands,
        float32 for narrower ones. Not differentiable.

    Raises:
        UnknownNameError: ``stats`` names none of the four.
        InputError: Shapes, dtypes, devices or options do not fit each other.
    """
    arguments = forward_arguments(
        a,
        delta,
        stats,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return select("layer_grad_stats", *arguments).forward(*arguments)


def forward_arguments(
    a: Tensor,
    delta: Tensor,
    stats: Collection[str],
    *,
    kernel_size: tuple[int, int] | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> tuple[Any, ...]:
    """What an implementation is handed for a public call, checked."""
    stats = _checked_stats(stats)
    require_tensor("a", a)
    require_tensor("delta", delta)
    require_dtype("a", a)
    require_dtype("delta", delta, (a.dtype,))
    require_same_device("delta", delta, "a", a)
    if kernel_size is None:
        if (stride, padding, dilation, groups) != ((1, 1), (0, 0), (1, 1), 1):
            raise InputError("kernel_size", "got None along with options of a convolution", "give (kh, kw)")
        _require_sequence(a, delta)
    else:
        for name, pair, least in (
            ("kernel_size", kernel_size, 1),
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        ):
            _require_pair(name, pair, least)
        _require_convolution(a, delta, kernel_size, stride, padding, dilation, groups)
    return a.detach(), delta.detach(), stats, kernel_size, stride, padding, dilation, groups


def weight_shape(a: Tensor, delta: Tensor, kernel_size: tuple[int, int] | None, groups: int) -> tuple[int, ...]:
    """The shape of the layer's weight."""
    if kernel_size is None:
        return delta.shape[2], a.shape[2]
    return delta.shape[1], a.shape[1] // groups, *kernel_size


def _checked_stats(stats: Collection[str]) -> tuple[str, ...]:
    if isinstance(stats, str) or not isinstance(stats, Collection):
        raise InputError("stats", f"got {stats!r}", "give a tuple of names")
    for name in stats:
        if name not in STATS:
            raise UnknownNameError("stats", str(name), STATS)
    if not stats:
        raise InputError("stats", "names no statistic", f"accepted: {', '.join(STATS)}")
    return tuple(name for name in STATS if name in stats)


def _require_pair(argument: str, pair: object, least: int) -> None:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError(argument, f"got {pair!r}", "give a pair of integers (height, width)")
    if any(isinstance(value, bool) or not isinstance(value, int) or value < least for value in pair):
        raise InputError(argument, f"got {pair!r}", f"give integers of at least {least}")


def _require_sequence(a: Tensor, delta: Tensor) -> None:
    for argument, tensor, sizes in (("a", a, "[B, T, K]"), ("delta", delta, "[B, T, O]")):
        if tensor.dim() != 3:
            raise InputError(argument, f"has shape {list(tensor.shape)}", f"a sequence is {sizes}")
    if a.shape[:2] != delta.shape[:2]:
        raise InputError(
            "delta",
            f"has {list(delta.shape[:2])} samples and positions, a has {list(a.shape[:2])}",
            "give the gradient at the output of this input",
        )


def _require_convolution(
    a: Tensor,
    delta: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    for argument, tensor, sizes in (("a", a, "[B, Cin, H, W]"), ("delta", delta, "[B, O, Ho, Wo]")):
        if tensor.dim() != 4:
            raise InputError(argument, f"has shape {list(tensor.shape)}", f"with a kernel_size it is {sizes}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise InputError("groups", f"got {groups!r}", "give an integer of at least 1")
    for argument, channels in (("a", a.shape[1]), ("delta", delta.shape[1])):
        if channels % groups:
            raise InputError("groups", f"{groups} does not divide the {channels} channels of {argument}", "check both")
    extents = zip(a.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    expected = [(size + 2 * pad - step * (taps - 1) - 1) // jump + 1 for size, taps, jump, pad, step in extents]
    if min(expected) < 1:
        raise InputError("kernel_size", f"{kernel_size} does not fit into a of shape {list(a.shape)}", "check padding")
    if list(delta.shape) != [a.shape[0], delta.shape[1], *expected]:
        raise InputError(
            "delta",
            f"has shape {list(delta.shape)}",
            f"these options make an output of {[a.shape[0], delta.shape[1], *expected]} of a",
        )
