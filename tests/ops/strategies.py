"""Random logits of every shape, memory layout, dtype and temper that the operators must take."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: The same examples in every run; the fixture that forces an implementation holds for all of them.
PROPERTY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: How a tensor may lie in memory: rows padded apart and unaligned, every second element, dimensions in reverse order,
#: the first dimension repeated by a zero stride.
LAYOUTS = ("contiguous", "padded", "sliced", "reversed", "expanded")

#: What the logits are like; "special" sprinkles -inf, +inf and NaN.
TEMPERS = ("ordinary", "close", "offset", "extreme", "equal", "masked", "special")


def lay_out(values: Tensor, layout: str) -> Tensor:
    """A tensor of these values and this memory layout ("expanded" repeats the first entry of the first dimension)."""
    *leading, size = values.shape
    if layout == "padded":
        room = values.new_full((*leading, size + 3), float("nan"))
        view = room[..., 1 : size + 1]
    elif layout == "sliced":
        room = values.new_full((*leading, 2 * size), float("nan"))
        view = room[..., ::2]
    elif layout == "reversed":
        view = torch.empty(tuple(reversed(values.shape)), dtype=values.dtype, device=values.device)
        view = view.permute(*reversed(range(values.ndim)))
    elif layout == "expanded" and leading and leading[0] > 0:
        return values[:1].expand(values.shape)
    else:
        return values.contiguous()
    return view.copy_(values)


def far_apart(device: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Two rows whose offsets need more than 32 bits, and rows whose classes are so far apart, in little real memory."""
    try:  # pages that nobody writes cost no memory on the CPU
        room = torch.empty(2**32 + 2**16, dtype=torch.bfloat16, device=device)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        pytest.skip(f"no {2**33 / 1e9:.0f} GB of address space: {error}")
    rows = room.as_strided((2, num_classes), (2**32, 1))
    columns = room.as_strided((2, num_classes), (1, 2**32 // num_classes), 2**15)
    return rows, columns


@dataclass(frozen=True)
class LogitPair:
    """Two operands of kl_div, small enough to print; ``build`` makes the tensors."""

    p_shape: tuple[int, ...]
    q_shape: tuple[int, ...]
    p_layout: str
    q_layout: str
    temper: str
    dtype: torch.dtype
    temperature: float
    seed: int

    def build(self, device: str) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        p = 3 * torch.randn(self.p_shape, generator=rng, dtype=torch.float64)
        q = 3 * torch.randn(self.q_shape, generator=rng, dtype=torch.float64)
        q = _temper(p, q, self.temper, rng)
        tensors = (
            lay_out(values.to(device, self.dtype), layout)
            for values, layout in ((p, self.p_layout), (q, self.q_layout))
        )
        return next(tensors), next(tensors)


@dataclass(frozen=True)
class LabelledLogits:
    """The arguments of logit_stats, small enough to print; ``build`` makes the tensors."""

    shape: tuple[int, ...]
    labels_shape: tuple[int, ...]
    layout: str
    temper: str
    dtype: torch.dtype
    seed: int

    def build(self, device: str) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        logits = 3 * torch.randn(self.shape, generator=rng, dtype=torch.float64)
        logits = _temper(logits, logits.clone(), self.temper, rng)
        labels = torch.randint(self.shape[-1], self.labels_shape, generator=rng)
        return lay_out(logits.to(device, self.dtype), self.layout), labels.to(device)


@st.composite
def logit_pairs(draw: st.DrawFn, max_classes: int = 70, max_size: int = 4) -> LogitPair:
    """Operands whose leading dimensions broadcast in any pattern, with or without rows."""
    leading = draw(st.lists(st.integers(0, max_size), max_size=3))
    num_classes = draw(st.integers(1, max_classes))
    shapes = []
    for _ in range(2):
        shape = [draw(st.sampled_from([size, 1])) if size != 1 else 1 for size in leading]
        dropped = draw(st.integers(0, len(shape))) if draw(st.booleans()) else 0
        shapes.append((*shape[dropped:], num_classes))
    return LogitPair(
        p_shape=shapes[0],
        q_shape=shapes[1],
        p_layout=draw(st.sampled_from(LAYOUTS)),
        q_layout=draw(st.sampled_from(LAYOUTS)),
        temper=draw(st.sampled_from(TEMPERS)),
        dtype=draw(st.sampled_from(DTYPES)),
        temperature=draw(st.sampled_from([1.0, 0.5, 2.0, 3.7])),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def labelled_logits(draw: st.DrawFn, max_classes: int = 70, max_size: int = 4) -> LabelledLogits:
    """Logits and labels whose shape broadcasts to their rows."""
    leading = draw(st.lists(st.integers(0, max_size), max_size=3))
    num_classes = draw(st.integers(2, max_classes))
    labels_shape = [draw(st.sampled_from([size, 1])) for size in leading]
    dropped = draw(st.integers(0, len(leading))) if draw(st.booleans()) else 0
    return LabelledLogits(
        shape=(*leading, num_classes),
        labels_shape=tuple(labels_shape[dropped:]),
        layout=draw(st.sampled_from(LAYOUTS)),
        temper=draw(st.sampled_from(TEMPERS)),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**31)),
    )


def _temper(p: Tensor, q: Tensor, temper: str, rng: torch.Generator) -> Tensor:
    """Change p in place, and return the q that goes with it."""
    same_shape = p.shape == q.shape
    if temper == "close" and same_shape:
        return p + 3e-3 * q
    if temper == "offset":
        return q + 100
    if temper == "extreme":
        p.mul_(3e3).clamp_(-1e4, 1e4)
        return q.mul(3e3).clamp(-1e4, 1e4)
    if temper == "equal" and same_shape:
        return p.clone()
    if temper == "masked":  # a class that neither model may predict, and one that only p may not
        for column in range(min(2, p.shape[-1] - 1)):
            p[..., column] = -torch.inf
        q[..., : min(1, p.shape[-1] - 1)] = -torch.inf
    if temper == "special" and p.numel() > 0 and q.numel() > 0:
        for operand in (p, q):
            for value in (-torch.inf, torch.inf, torch.nan):
                operand[torch.rand(operand.shape, generator=rng) < 0.5 / max(operand.shape[-1], 4)] = value
    return q
