"""Weights that stay bit for bit what they are, whatever optimiser moves the others.

A mask on gradients does not freeze: momentum, weight decay and Adam's state move a weight whose gradient is 0. So the
gradient is masked, and the values are put back after every step; at the end they are compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastmem.errors import InputError

__all__ = ["FrozenWeights"]

# Below this share of a tensor, writing single places is faster than choosing between two tensors everywhere.
_FEW = 1 / 16


class FrozenWeights:
    """Some weights of a network, held at the values they have now.

    Args:
        model: The network.
        masks: Which weights of each parameter are frozen, bool of its shape, by name; names left out are free.

    Raises:
        InputError: A name or shape does not fit.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self._held: list[_Held] = []
        self.count = 0
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape or mask.dtype != torch.bool:
                raise InputError(
                    f"masks[{name!r}]", f"{mask.dtype} {list(mask.shape)}", "give bool of a parameter's shape"
                )
            held = _Held(name, parameters[name], mask.to(parameters[name].device))
            if held.count:
                self._held.append(held)
                self.count += held.count

    def mask_gradients(self) -> None:
        """Sets the gradients of frozen weights to 0, so that they count in no norm and no state."""
        for held in self._held:
            held.mask_gradient()

    def restore(self) -> None:
        """Puts the frozen values back; call it after every step."""
        for held in self._held:
            held.restore()

    def changed(self) -> dict[str, int]:
        """How many frozen weights differ in any bit from what they were, by name; empty if none does."""
        found = {held.name: held.changed() for held in self._held}
        return {name: number for name, number in found.items() if number}

    def require_unchanged(self) -> None:
        """Raises RuntimeError if a frozen weight has changed."""
        if changed := self.changed():
            raise RuntimeError(f"frozen weights were changed: {changed}")


class _Held:
    """The frozen weights of one parameter."""

    def __init__(self, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        self.name = name
        self._parameter = parameter
        self._mask = mask
        self.count = int(mask.sum())
        self._values = parameter.detach()[mask].clone()
        few = self.count < _FEW * mask.numel() and parameter.is_contiguous()
        self._places = mask.flatten().nonzero()[:, 0] if few else None
        self._whole = None if few else parameter.detach().clone()

    @torch.no_grad()
    def mask_gradient(self) -> None:
        # Opacus keeps the gradients of single records, whose norms it clips, beside the weight.
        samples = getattr(self._parameter, "grad_sample", None)
        if isinstance(samples, Tensor):
            samples.masked_fill_(self._mask, 0)
        gradient = self._parameter.grad
        if gradient is None:
            return
        if self._places is not None and gradient.is_contiguous():
            gradient.view(-1).index_fill_(0, self._places, 0)
        else:
            gradient.masked_fill_(self._mask, 0)

    @torch.no_grad()
    def restore(self) -> None:
        if self._places is not None:
            self._parameter.view(-1).index_copy_(0, self._places, self._values)
        else:
            assert self._whole is not None
            self._parameter.copy_(torch.where(self._mask, self._whole, self._parameter))

    @torch.no_grad()
    def changed(self) -> int:
        now = self._parameter.detach()[self._mask]
        return int((_bits(now) != _bits(self._values)).sum())


def _bits(values: Tensor) -> Tensor:
    """The values' bit patterns: 0 and -0 differ, a NaN equals itself."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]
    return values.contiguous().view(kind)
