"""``y = x W' + b``, on one row a sample or on a sequence of rows: ``g_i = sum_t delta_it a_it'``."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fastmem.ops._layers.forms import Direct, Form
from fastmem.ops._layers.rule import Arguments, Rule
from fastmem.ops.layer_grad_stats import layer_grad_stats

__all__ = ["RULE", "Outer"]


class Outer(Form):
    """``g_i = sum_t delta_it a_it'``.

    With one position (T = 1) the elements factor, ``|g_i[o, k]|^p = |delta_i[o]|^p |a_i[k]|^p``, so every sum is one
    matrix product of B rows and the norm is ``|delta_i| |a_i|``. With more, sums go to the fused operator, and norms
    come from the two T x T Gram matrices ``<a_it, a_is> <delta_it, delta_is>`` where these are cheaper.

    Args:
        a: Layer inputs, [B, T, K].
        delta: Gradients at the layer's outputs, [B, T, O].
    """

    def __init__(self, a: Tensor, delta: Tensor) -> None:
        self.a, self.delta = a, delta
        self.shape = torch.Size((delta.shape[-1], a.shape[-1]))
        self.batch, self.dtype = len(a), delta.dtype

    @classmethod
    def joined(cls, parts: list[Outer]) -> Outer:
        """Several uses of one weight are one use with their positions after one another."""
        return cls(torch.cat([part.a for part in parts], 1), torch.cat([part.delta for part in parts], 1))

    def grads(self, start: int, stop: int) -> Tensor:
        """One product a sample."""
        return torch.bmm(self.delta[start:stop].mT, self.a[start:stop])

    def sums(self, names: Collection[str]) -> dict[str, Tensor]:
        """By identities for T = 1, else by the operator (norms alone by whichever is cheaper)."""
        if self.a.shape[1] == 1:
            return self._row_sums(names)
        rows, columns = self.shape
        if set(names) == {"norm_sq"} and ghost_is_cheaper(self.a.shape[1], rows, columns):
            return {"norm_sq": ghost_norm_sq(self.a, self.delta)}
        found = layer_grad_stats(self.a, self.delta, tuple(names))
        return {name: getattr(found, name) for name in names}

    def _row_sums(self, names: Collection[str]) -> dict[str, Tensor]:
        a, delta = self.a[:, 0], self.delta[:, 0]
        found: dict[str, Tensor] = {}
        if "sum" in names:
            found["sum"] = delta.T @ a
        if "sum_abs" in names:
            found["sum_abs"] = delta.abs().T @ a.abs()
        if "sum_sq" in names or "norm_sq" in names:
            a_sq, delta_sq = a.square(), delta.square()
            if "sum_sq" in names:
                found["sum_sq"] = delta_sq.T @ a_sq
            if "norm_sq" in names:
                found["norm_sq"] = a_sq.sum(1) * delta_sq.sum(1)
        return found

    def weighted(self, weights: Tensor) -> Tensor:
        """Scaled rows of delta, and one weight-gradient product."""
        scaled = self.delta * weights.to(self.delta)[:, None, None]
        return scaled.flatten(0, 1).T @ self.a.flatten(0, 1)

    def dot(self, direction: Tensor) -> Tensor:
        """``sum_t <V a_it, delta_it>``."""
        return ((self.a @ direction.to(self.a).T) * self.delta).sum((1, 2))

    def gram(self) -> Tensor:
        """``(delta delta') (a a')`` element by element for T = 1."""
        if self.a.shape[1] != 1:
            return super().gram()
        a, delta = self.a[:, 0], self.delta[:, 0]
        return (a @ a.T) * (delta @ delta.T)


def ghost_is_cheaper(positions: int, rows: int, columns: int) -> bool:
    """Whether two T x T Gram matrices take fewer operations, ``2 T^2 (O + K)``, than the gradient, ``2 T O K``."""
    return positions * (rows + columns) < rows * columns


def ghost_norm_sq(a: Tensor, delta: Tensor) -> Tensor:
    """``|g_i|^2 = sum_ts <a_it, a_is> <delta_it, delta_is>`` of [B, T, K] and [B, T, O], a few samples at a time."""
    batch, positions = a.shape[:2]
    size = max(1, (1 << 22) // max(1, positions**2))
    found = a.new_empty(batch)
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        inputs, outputs = a[rows] @ a[rows].mT, delta[rows] @ delta[rows].mT
        found[rows] = (inputs.mul_(outputs)).sum((1, 2)).clamp_(min=0)
    return found


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Arguments:
    return Arguments(input, weight, bias, leading=input.ndim - 1)


def _weight(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    return Outer(x.flatten(1, -2), delta.flatten(1, -2))


def _bias(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    return Direct(delta.flatten(1, -2).sum(1))


RULE = Rule("linear", _arguments, _weight, _bias)
