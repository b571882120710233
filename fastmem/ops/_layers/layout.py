"""Where the samples of a batch lie in a layer's input and output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Layout", "candidates"]


@dataclass(frozen=True)
class Layout:
    """The batch lies in dimension ``dim``, every sample ``repeats`` times.

    Attributes:
        dim: The dimension.
        repeats: R; the dimension has size R B (more than 1 where time is folded into the batch).
        batch_major: Whether a sample's repeats are next to each other.
    """

    dim: int = 0
    repeats: int = 1
    batch_major: bool = True

    def apply(self, tensor: Tensor, batch: int) -> Tensor:
        """The tensor as ``[B, R, ...]``."""
        front = tensor.movedim(self.dim, 0)
        if self.batch_major:
            return front.unflatten(0, (batch, self.repeats))
        return front.unflatten(0, (self.repeats, batch)).transpose(0, 1)


def candidates(shape: tuple[int, ...], leading: int, batch: int) -> list[Layout]:
    """Every layout that a tensor of this shape could have."""
    found = []
    for dim, size in enumerate(shape[:leading]):
        if size and size % batch == 0:
            repeats = size // batch
            found += [Layout(dim, repeats, major) for major in ((True,) if repeats == 1 else (True, False))]
    return found
