"""``y = W[ids]``: row v of ``g_i`` is the sum of ``delta_it`` over the positions t at which sample i reads v."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fastmem.ops._layers.forms import Form
from fastmem.ops._layers.rule import Arguments, Rule

__all__ = ["RULE", "Rows"]


class Rows(Form):
    """The gradients of an embedding: at most T rows a sample, so they are kept as segments (sample, row).

    Args:
        ids: [B, T], rows read.
        delta: [B, T, D].
        num_rows: Of the weight.
    """

    def __init__(self, ids: Tensor, delta: Tensor, num_rows: int) -> None:
        self.ids, self.delta = ids, delta
        self.shape = torch.Size((num_rows, delta.shape[-1]))
        self.batch, self.dtype = len(ids), delta.dtype

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """Several reads are one with their positions after one another."""
        ids, delta = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("ids", "delta"))
        return cls(ids, delta, parts[0].shape[0])

    def grads(self, start: int, stop: int) -> Tensor:
        """Dense rows."""
        found = self.delta.new_zeros((stop - start, *self.shape))
        sample = torch.arange(stop - start, device=self.ids.device)[:, None].expand(-1, self.ids.shape[1])
        return found.index_put_((sample, self.ids[start:stop]), self.delta[start:stop], accumulate=True)

    def sums(self, names: Collection[str]) -> dict[str, Tensor]:
        """Segments first, then their ``f`` added up by row."""
        sample, row, segment = self._segments()
        found = self._zero_sums(names)
        if "sum" in found:
            found["sum"].index_add_(0, row, segment)
        if "sum_abs" in found:
            found["sum_abs"].index_add_(0, row, segment.abs())
        squares = segment.square()
        if "sum_sq" in found:
            found["sum_sq"].index_add_(0, row, squares)
        if "norm_sq" in found:
            found["norm_sq"].index_add_(0, sample, squares.sum(1))
        return found

    def weighted(self, weights: Tensor) -> Tensor:
        """Scaled rows of delta added up by row."""
        scaled = self.delta * weights.to(self.delta)[:, None, None]
        return self._zeros(self.shape).index_add_(0, self.ids.flatten(), scaled.flatten(0, 1))

    def dot(self, direction: Tensor) -> Tensor:
        """``sum_t <V[id_t], delta_t>``."""
        return (direction.to(self.delta)[self.ids] * self.delta).sum((1, 2))

    def gram(self) -> Tensor:
        """Over the rows that are read at all."""
        read, compact = self.ids.unique(return_inverse=True)
        return Form.gram(Rows(compact, self.delta, len(read)))

    def _segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, row and summed delta of every (sample, row) that occurs."""
        sample = torch.arange(self.batch, device=self.ids.device)[:, None]
        keys, where = (sample * self.shape[0] + self.ids).flatten().unique(return_inverse=True)
        segment = self._zeros((len(keys), self.shape[1]))
        segment.index_add_(0, where, self.delta.flatten(0, 1))
        return keys // self.shape[0], keys % self.shape[0], segment


def _arguments(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Arguments:
    refusal = "an embedding with scale_grad_by_freq, which counts over the batch" if scale_grad_by_freq else None
    options = {"padding_idx": padding_idx, "num_rows": weight.shape[0]}
    return Arguments(indices, weight, None, leading=indices.ndim, options=options, refusal=refusal)


def _weight(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    options = arguments.options
    assert options is not None
    ids, delta = x.flatten(1).long(), delta.flatten(1, -2)
    if options["padding_idx"] >= 0:  # that row gets no gradient, as in autograd
        delta = delta.masked_fill((ids == options["padding_idx"])[..., None], 0)
    return Rows(ids, delta, options["num_rows"])


def _bias(x: Tensor, delta: Tensor, arguments: Arguments) -> Form:
    raise AssertionError("an embedding has no bias")


RULE = Rule("embedding", _arguments, _weight, _bias)
