"""Float32 matrix products by TF32 tensor cores in three parts (3xTF32), for a residual whose terms cancel.

TF32 keeps 10 bits of a mantissa of 23, so one product of tensor cores is right to three digits, and of ``R = G - theta``,
where seven digits of G cancel down to three, nothing is left. Cut in two, ``x = high + low`` with 10 bits in each, all but
``low low`` of a product goes through tensor cores and what is lost is some 2^-21 of each factor (Ootomo and Yokota 2022,
arXiv:2203.03341): float32's own error, give or take, at a third of TF32's rate.

The arithmetic is tested on the host with products that round as tensor cores do; it has not run on any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Parts", "split", "split_product", "tf32"]

# The 13 bits that TF32 lacks, and half of the last one that it has.
_LOST, _HALF = 0x1FFF, 0x1000


class Parts(NamedTuple):
    """A float32 tensor as a sum of two with 10 bits of mantissa each.

    Attributes:
        high: Rounded to TF32.
        low: What is left of it, rounded by whoever multiplies it.
    """

    high: Tensor
    low: Tensor

    @property
    def mT(self) -> Parts:  # noqa: N802 - as a tensor's
        """The last two dimensions exchanged."""
        return Parts(self.high.mT, self.low.mT)


def tf32(x: Tensor) -> Tensor:
    """Float32 numbers rounded to the nearest of TF32, ties away from zero, as ``cvt.rna.tf32.f32`` does."""
    return ((x.contiguous().view(torch.int32) + _HALF) & ~_LOST).view(torch.float32)


def split(x: Tensor) -> Parts:
    """The two parts of a float32 tensor. Infinity leaves NaN, and NaN stays."""
    high = tf32(x)
    return Parts(high, x - high)


def split_product(a: Tensor | Parts, b: Tensor | Parts) -> Tensor:
    """``a b`` in three products of tensor cores, the small ones summed first."""
    a = a if isinstance(a, Parts) else split(a)
    b = b if isinstance(b, Parts) else split(b)
    with _tensor_cores():
        return _product(a.low, b.high).add_(_product(a.high, b.low)).add_(_product(a.high, b.high))


def _product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Lets torch's products of float32 matrices use TF32 within, whatever is allowed outside."""
    flags = torch.backends.cuda.matmul
    before = flags.fp32_precision
    if before == "tf32":
        yield
        return
    # The older flag sets the newer one with it, the other way round they would disagree, which torch refuses.
    flags.allow_tf32 = True
    try:
        yield
    finally:
        flags.allow_tf32 = False
        flags.fp32_precision = before
