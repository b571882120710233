"""What an implementation of ``kkt_residual`` is handed, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastmem.errors import InputError
from fastmem.ops._kkt.network import KktNetwork, Layer
from fastmem.ops._kkt.products import Parts, split, split_product

__all__ = ["Problem", "Solved", "gram_is_cheaper", "margin_directions"]

# A Gram form costs about m^2 (inputs + outputs) where the direct one costs m inputs outputs, and it saves a pass over
# the weights; measured, it pays up to here.
_GRAM_SHARE = 0.75


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """S problems against one network.

    Args:
        network: The prepared network.
        x: Candidates [S, m, *sample].
        c: Coefficients [S, m], signs and scales included.
        directions: Of the outputs, [S, m, K], or None: the margin of ``labels``, or ones.
        labels: int64 [S, m] with values below K, for the margin against the largest other output; or None.
        alpha: Slopes of the modified ReLU, float64 [S]; None for the network's own derivative.
        method: auto, autograd, direct or gram.
        precision: native; compensated: products whose result is compared with the weights in float64; or tf32x3: products
            of float32 by tensor cores in three parts.
    """

    network: KktNetwork
    x: Tensor
    c: Tensor
    directions: Tensor | None
    labels: Tensor | None
    alpha: Tensor | None
    method: str
    precision: str

    def __repr__(self) -> str:
        problems, m = self.c.shape
        dtype = str(self.x.dtype).removeprefix("torch.")
        return f"{type(self.network.model).__name__}, {problems} x {m} candidates {list(self.x.shape[2:])} {dtype}"

    @property
    def by_autograd(self) -> bool:
        """Whether the double backward pass is what was asked for, or all there is."""
        return self.method == "autograd" or not self.network.layers

    def uses_gram(self, layer: Layer) -> bool:
        """Whether a layer takes the Gram form."""
        return self.method == "gram" or (self.method == "auto" and gram_is_cheaper(self.c.shape[-1], layer))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``a b`` in the precision that is asked for."""
        return split_product(a, b) if self.precision == "tf32x3" else a @ b

    def up(self, a: Tensor, layer: Layer) -> Tensor:
        """``a W^T`` of a layer, without its bias."""
        return split_product(a, self._parts(layer).mT) if self.precision == "tf32x3" else a @ layer.weight.mT

    def down(self, d: Tensor, layer: Layer) -> Tensor:
        """``d W`` of a layer."""
        return split_product(d, self._parts(layer)) if self.precision == "tf32x3" else d @ layer.weight

    def _parts(self, layer: Layer) -> Parts:
        key = ("parts", layer)
        if key not in self.network.notes:
            self.network.notes[key] = split(layer.weight)
        return self.network.notes[key]

    def slopes(self, like: Tensor) -> Tensor:
        """``alpha`` as [S, 1, 1], to broadcast over activations."""
        assert self.alpha is not None
        return self.alpha.to(like.dtype).view(-1, 1, 1)


class Solved(NamedTuple):
    """Values and gradients of S problems.

    Attributes:
        losses: Squared residual of each parameter, float64 [S, parameters], in the order of the network's targets.
        grad_x: As ``x``.
        grad_c: As ``c``.
    """

    losses: Tensor
    grad_x: Tensor
    grad_c: Tensor


def gram_is_cheaper(candidates: int, layer: Layer) -> bool:
    """Whether the Gram form of a layer takes fewer operations than the direct one."""
    return candidates <= _GRAM_SHARE * min(layer.weight.shape)


def margin_directions(outputs: Tensor, labels: Tensor) -> Tensor:
    """``e_y - e_k`` with k the largest other output: the direction of the margin, held constant; [..., K]."""
    if outputs.shape[-1] < 2:
        raise InputError("labels", "given for a network with one output", "put the sign into the coefficients instead")
    # (torch's one_hot would look at the values on the host)
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    own = labels.unsqueeze(-1) == classes
    rival = outputs.masked_fill(own, -torch.inf).argmax(-1, keepdim=True) == classes
    return own.to(outputs.dtype) - rival.to(outputs.dtype)
