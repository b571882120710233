"""Adds up what the forms of a batch's parameters say, and batches to each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmem.ops._layers.forms import Direct, Form
from fastmem.ops._layers.functional import Functional

__all__ = ["Held", "Request"]

_BY_WEIGHT = ("sum", "sum_sq", "sum_abs")
_POWER = {"sum": 1, "sum_abs": 1, "sum_sq": 2, "norm_sq": 2}


@dataclass(frozen=True)
class Request:
    """What is asked of every parameter's form.

    Attributes:
        stats: Of ``norm``, ``sum``, ``sum_sq``, ``sum_abs``, ``gram``.
        weights: [B], for the weighted sum.
        direction: By parameter name, for the product.
        scale: Of the gradients: B where the loss that was differentiated is a mean.
        gradients: Whether the plain sum is needed too, to be handed on.
    """

    stats: frozenset[str]
    weights: Tensor | None = None
    direction: Mapping[str, Tensor] | None = None
    scale: float = 1.0
    gradients: bool = False

    def names(self) -> Collection[str]:
        """Of the sums that a form computes."""
        names = {name for name in _BY_WEIGHT if name in self.stats} | ({"sum"} if self.gradients else set())
        return names | ({"norm_sq"} if "norm" in self.stats else set())


@dataclass
class Held:
    """Results: of one batch while it is under way, then of all batches.

    Attributes:
        sums: ``sum``, ``sum_sq``, ``sum_abs``, ``weighted_sum``, each by parameter name.
        rows: ``norm_sq`` and ``dot``, [B] in float64.
        gram: [B, B], float64.
        batch: How many samples.
    """

    sums: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    gram: Tensor | None = None
    batch: int = 0

    @classmethod
    def empty(cls, request: Request, batch: int, device: torch.device) -> Held:
        """For a batch that is about to begin."""
        held = cls(batch=batch)
        names = [name for name in _BY_WEIGHT if name in request.stats]
        if request.weights is not None:
            names.append("weighted_sum")
        held.sums = {name: {} for name in names}
        rows = [*(["norm_sq"] if "norm" in request.stats else []), *(["dot"] if request.direction is not None else [])]
        held.rows = {name: torch.zeros(batch, dtype=torch.float64, device=device) for name in rows}
        if "gram" in request.stats:
            held.gram = torch.zeros(batch, batch, dtype=torch.float64, device=device)
        return held

    def take(self, request: Request, name: str, form: Form, start: int = 0) -> Tensor | None:
        """Add a parameter's form, of samples from ``start`` on; returns the unscaled sum if gradients are wanted."""
        samples = slice(start, start + form.batch)
        found = form.sums(wanted) if (wanted := request.names()) else {}
        gradient = found["sum"] if request.gradients else None
        for stat, value in found.items():
            factor = request.scale ** _POWER[stat]
            if stat == "norm_sq":
                self.rows["norm_sq"][samples] += value.double() * factor
            elif stat in self.sums:
                own = value.clone() if value is gradient else value
                self._add(stat, name, own.mul_(factor) if factor != 1 else own)
        if request.weights is not None:
            self._add("weighted_sum", name, form.weighted(request.weights[samples]) * request.scale)
        if request.direction is not None and name in request.direction:
            self.rows["dot"][samples] += form.dot(request.direction[name]).double() * request.scale
        if self.gram is not None and form.batch == self.batch:
            self.gram += form.gram().double() * request.scale**2
        return gradient

    def _add(self, stat: str, name: str, value: Tensor) -> None:
        sums = self.sums[stat]
        sums[name] = sums[name].add_(value) if name in sums else value

    def take_functional(self, request: Request, functional: Functional, dtypes: Mapping[str, torch.dtype]) -> None:
        """Add gradients that come multiplied out, a few samples at a time."""
        for start, gradients in functional.chunks():
            wide = {name: gradient.detach().to(dtypes[name]) for name, gradient in gradients.items()}
            for name, gradient in wide.items():
                self.take(request, name, Direct(gradient), start)
            if self.gram is not None:
                left = _flat(wide)
                for other, more in functional.chunks(start):
                    right = _flat({name: gradient.detach().to(dtypes[name]) for name, gradient in more.items()})
                    rows, columns = slice(start, start + len(left)), slice(other, other + len(right))
                    self.gram[rows, columns] = (left @ right.T).double()
                    self.gram[columns, rows] = self.gram[rows, columns].T.clone()

    def complete(
        self, shapes: Mapping[str, torch.Size], dtypes: Mapping[str, torch.dtype], device: torch.device
    ) -> None:
        """Zeros for parameters that the loss did not reach, and the parameters' own order."""
        for stat, sums in self.sums.items():
            self.sums[stat] = {
                name: sums[name] if name in sums else torch.zeros(shape, dtype=dtypes[name], device=device)
                for name, shape in shapes.items()
            }

    def append(self, later: Held) -> None:
        """Add a later batch: sums add up, rows are put after one another."""
        if self.batch == 0 and not self.sums and not self.rows:
            self.sums, self.rows = later.sums, later.rows
        else:
            for stat, sums in later.sums.items():
                for name, value in sums.items():
                    self._add(stat, name, value)
            for row, value in later.rows.items():
                self.rows[row] = torch.cat([self.rows[row], value])
        self.gram = later.gram
        self.batch += later.batch


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(1).double() for gradient in gradients.values()], 1)
