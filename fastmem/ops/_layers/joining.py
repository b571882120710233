"""From calls to parameters: forms of one parameter's uses are joined when the last of them is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastmem.ops._checks import accumulation_dtype
from fastmem.ops._layers.capture import Call, Slot
from fastmem.ops._layers.embedding import Rows
from fastmem.ops._layers.forms import Direct, Form, Stack, Total
from fastmem.ops._layers.linear import Outer

__all__ = ["FormRecorder", "joined"]


class FormRecorder:
    """Builds the form of every parameter during a backward pass, and hands it on as soon as it is complete.

    Args:
        parameters: By name.
        batch: B.
        finish: Called once for every parameter that the backward pass reached; returns the sum over samples where the
            parameter's gradient is wanted, else ``None``.
        hand_on: Whether the calls' parameters get gradients.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        batch: int,
        finish: Callable[[str, Form], Tensor | None],
        *,
        hand_on: bool = False,
    ) -> None:
        self._parameters, self._batch = parameters, batch
        self._finish, self._hand_on = finish, hand_on
        self._uses: dict[str, int] = {}
        self._pending: dict[str, list[tuple[Slot, Form]]] = {}
        self.started = False

    def called(self, call: Call) -> None:
        """Count the uses of its parameters."""
        for slot in (call.weight, call.bias):
            if slot is not None:
                self._uses[slot.name] = self._uses.get(slot.name, 0) + 1

    def returned(self, call: Call, x: Tensor, delta: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Build the forms of weight and bias."""
        self.started = True
        assert call.layout is not None
        dtype = self._dtype(call)
        delta = call.layout.apply(delta, self._batch).to(dtype)
        x = call.layout.apply(x, self._batch)
        x = x.to(dtype) if x.is_floating_point() else x
        with torch.no_grad():
            weight = self._add(call.weight, lambda: call.rule.weight(x, delta, call.arguments))
            bias = self._add(call.bias, lambda: call.rule.bias(x, delta, call.arguments))
        return weight, bias

    def flush(self) -> None:
        """Finish the parameters of which some use has no gradient (its output did not reach the loss)."""
        for name, parts in self._pending.items():
            self._finish(name, joined(parts, self._parameters[name].shape))
        self._pending.clear()

    def _dtype(self, call: Call) -> torch.dtype:
        slot = call.weight or call.bias
        assert slot is not None
        return accumulation_dtype(self._parameters[slot.name].dtype)

    def _add(self, slot: Slot | None, make: Callable[[], Form]) -> Tensor | None:
        if slot is None:
            return None
        parameter, form = self._parameters[slot.name], make()
        if self._uses[slot.name] == 1 and slot.rows is None:
            total = self._finish(slot.name, form)
        else:
            parts = self._pending.setdefault(slot.name, [])
            parts.append((slot, form))
            total = form.sums(("sum",))["sum"] if self._hand_on else None
            if len(parts) == self._uses[slot.name]:
                self._finish(slot.name, joined(self._pending.pop(slot.name), parameter.shape))
        return total.to(parameter.dtype) if self._hand_on and total is not None else None


def joined(parts: Sequence[tuple[Slot, Form]], shape: torch.Size) -> Form:
    """One form of all uses: along the positions where they are alike, side by side where their rows are apart."""
    ranges: dict[tuple[int, int], list[Form]] = {}
    for slot, form in parts:
        ranges.setdefault(slot.rows or (0, shape[0]), []).append(form)
    if list(ranges) == [(0, shape[0])]:
        return _alike(ranges[0, shape[0]])
    blocks = [(low, high, _alike(forms)) for (low, high), forms in sorted(ranges.items(), key=lambda item: item[0])]
    if all(before[1] <= after[0] for before, after in pairwise(blocks)):
        return Stack(blocks, shape)
    return Total([Stack([block], shape) for block in blocks])


def _alike(forms: list[Form]) -> Form:
    if len(forms) == 1:
        return forms[0]
    if outer := [form for form in forms if isinstance(form, Outer)]:
        if len(outer) == len(forms):
            return Outer.joined(outer)
    elif rows := [form for form in forms if isinstance(form, Rows)]:
        if len(rows) == len(forms):
            return Rows.joined(rows)
    elif all(isinstance(form, Direct) for form in forms):
        return Direct(torch.stack([form.grads(0, form.batch) for form in forms]).sum(0))
    return Total(forms)
