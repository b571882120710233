"""Convolutions in one and two dimensions: ``g_i = D_i U_i'`` for every group, U the patches that the kernel meets.

Padding modes other than zeros, and ``padding="same"`` with an odd total, reach this file as an input that is padded
already; a convolution in one dimension is one in two with height 1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.ops._layers.forms import CHUNK_BYTES, Direct, Form, Total
from fastmem.ops._layers.linear import ghost_is_cheaper, ghost_norm_sq
from fastmem.ops._layers.rule import Arguments, Rule
from fastmem.ops.layer_grad_stats import layer_grad_stats

__all__ = ["CONV1D", "CONV2D", "Patches"]

_Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Where a kernel meets its input."""

    kernel_size: _Pair
    stride: _Pair
    padding: _Pair
    dilation: _Pair
    groups: int


class Patches(Form):
    """The gradients of a convolution's weight.

    Args:
        a: Inputs, [B, C, H, W].
        delta: Gradients at the outputs, [B, O, Ho, Wo].
        geometry: Of the convolution.
        shape: Of the weight: [O, C / groups, kh, kw], or without kh.
    """

    def __init__(self, a: Tensor, delta: Tensor, geometry: Geometry, shape: torch.Size) -> None:
        self.a, self.delta, self.geometry = a, delta, geometry
        self.shape, self.batch, self.dtype = shape, len(a), delta.dtype

    def grads(self, start: int, stop: int) -> Tensor:
        """One product of output gradients and patches a sample and group; patches are laid out a few at a time."""
        found = self.delta.new_empty((stop - start, *self.shape))
        size = self.chunk()
        for first in range(start, stop, size):
            last = min(first + size, stop)
            patches, delta = self._unfolded(first, last)
            found[first - start : last - start] = (delta @ patches.mT).view(last - first, *self.shape)
        return found

    def sums(self, names: Collection[str]) -> dict[str, Tensor]:
        """By the fused operator; norms alone from Gram matrices of positions where these are cheaper."""
        positions = self.delta[0, 0].numel() if self.batch else 0
        rows, columns = self.shape[0] // self.geometry.groups, self.shape[1:].numel()
        if set(names) == {"norm_sq"} and ghost_is_cheaper(positions, rows, columns):
            return {"norm_sq": self._ghost_norm_sq()}
        g = self.geometry
        found = layer_grad_stats(
            self.a,
            self.delta,
            tuple(names),
            kernel_size=g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
        )
        values = {name: getattr(found, name) for name in names}
        return {name: value if name == "norm_sq" else value.view(self.shape) for name, value in values.items()}

    def weighted(self, weights: Tensor) -> Tensor:
        """Scaled output gradients, and one weight gradient as in any backward pass."""
        g = self.geometry
        scaled = self.delta * weights.to(self.delta)[:, None, None, None]
        kernel = self.a.new_empty(1).expand(self.shape[0], self.shape[1], *g.kernel_size)  # only its shape is read
        _, found, _ = torch.ops.aten.convolution_backward.default(
            scaled, self.a, kernel, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (False, True, False)
        )
        return found.reshape(self.shape)

    def dot(self, direction: Tensor) -> Tensor:
        """The convolution with the direction for a kernel, times delta."""
        g = self.geometry
        kernel = direction.to(self.a).reshape(self.shape[0], self.shape[1], *g.kernel_size)
        response = F.conv2d(self.a, kernel, None, g.stride, g.padding, g.dilation, g.groups)
        return (response * self.delta).sum((1, 2, 3))

    def chunk(self) -> int:
        """Patches may be larger than the gradient."""
        elements = max(self.shape.numel(), self._patch_elements())
        return max(1, CHUNK_BYTES // max(1, elements * self.dtype.itemsize))

    def _patch_elements(self) -> int:
        height, width = self.delta.shape[2:]
        return self.a.shape[1] * self.geometry.kernel_size[0] * self.geometry.kernel_size[1] * height * width

    def _unfolded(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Patches [b, G, C/G * kh * kw, T] and output gradients [b, G, O/G, T]."""
        g = self.geometry
        patches = F.unfold(self.a[start:stop], g.kernel_size, g.dilation, g.padding, g.stride)
        delta = self.delta[start:stop].flatten(2)
        return patches.unflatten(1, (g.groups, -1)), delta.unflatten(1, (g.groups, -1))

    def _ghost_norm_sq(self) -> Tensor:
        found = self.delta.new_empty(self.batch)
        size = max(1, CHUNK_BYTES // max(1, self._patch_elements() * self.dtype.itemsize))
        for start in range(0, self.batch, size):
            stop = min(start + size, self.batch)
            patches, delta = self._unfolded(start, stop)
            norms = ghost_norm_sq(patches.flatten(0, 1).mT, delta.flatten(0, 1).mT)
            found[start:stop] = norms.view(stop - start, -1).sum(1)
        return found


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Arguments:
    refusal = None if input.ndim == weight.ndim else "a convolution without a batch dimension"
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "shape": weight.shape}
    return Arguments(input, weight, bias, leading=1, options=options, refusal=refusal)


def _weight(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    options = arguments.options
    assert options is not None
    shape: torch.Size = options["shape"]
    dimensions = len(shape) - 2
    kernel = tuple(shape[2:])
    stride, dilation = (_numbers(options[name], dimensions) for name in ("stride", "dilation"))
    padding = options["padding"]
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        padding = tuple(total // 2 for total in totals)
        if any(total % 2 for total in totals):  # an even kernel: one more at the end
            x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
            padding = (0,) * dimensions
    else:
        padding = (0,) * dimensions if padding == "valid" else _numbers(padding, dimensions)
    if dimensions == 1:
        x, delta = x.unsqueeze(-2), delta.unsqueeze(-2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    pairs = [(int(values[0]), int(values[1])) for values in (kernel, stride, padding, dilation)]
    geometry = Geometry(*pairs, groups=options["groups"])
    parts = [Patches(x[:, repeat], delta[:, repeat], geometry, shape) for repeat in range(x.shape[1])]
    return parts[0] if len(parts) == 1 else Total(parts)


def _numbers(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _bias(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    return Direct(delta.flatten(3).sum((1, 3)))


CONV1D = Rule("conv1d", _arguments, _weight, _bias)
CONV2D = Rule("conv2d", _arguments, _weight, _bias)
