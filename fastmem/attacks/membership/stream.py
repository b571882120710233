"""False members without end: draw generated images until so many of them are called members.

"A potentially infinite number of samples falsely classified as members" (Hintersdorf et al. 2022, arXiv:2111.09076) is a
statement about a rate: as long as it is above zero, a generator gives as many as one likes. Drawing stops at the k-th
false member, so the number of draws n is negative binomial, and the interval of the rate is that of Clopper and Pearson
for a stopped count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from fastmem.data.generators import Generate
from fastmem.errors import InputError
from fastmem.metrics import clopper_pearson

__all__ = ["FalseMembers", "draw_false_members"]

_BATCH = 512
_KEPT = 24


@dataclass(frozen=True)
class FalseMembers:
    """What a stream of generated images gave.

    Args:
        wanted: False members asked for.
        found: False members found; less than ``wanted`` where the limit of draws came first.
        drawn: Images drawn, up to and including the last false member that was counted.
        rate: found / drawn.
        low: Lower end of the 95% interval of the rate.
        high: Upper end.
        seconds: Time, images and model included.
        images: The first false members, uint8 [at most 24, C, H, W].
    """

    wanted: int
    found: int
    drawn: int
    rate: float
    low: float
    high: float
    seconds: float
    images: Tensor = field(repr=False)


def draw_false_members(
    generate: Generate,
    predict: Callable[[Tensor], np.ndarray],
    wanted: int,
    *,
    seed: int = 0,
    limit: int | None = None,
    on_found: Callable[[int], None] | None = None,
) -> FalseMembers:
    """Draws until ``wanted`` images are called members.

    Args:
        generate: ``(count, seed) -> uint8 images``; each batch is drawn with a seed of its own.
        predict: Images to who is called a member, bool [B]; none of them is one.
        wanted: False members to find.
        seed: The first batch's seed; the following ones count on.
        limit: Images to draw at most; by default a thousand for each one wanted.
        on_found: Called with the number of false members of each batch.

    Raises:
        InputError: If ``wanted`` or ``limit`` is below 1, or the generator fails.
    """
    limit = 1000 * wanted if limit is None else limit
    if wanted < 1 or limit < 1:
        raise InputError("false_members", f"{wanted} of at most {limit} draws", "give at least 1 of each")
    start = time.perf_counter()
    found = drawn = 0
    kept: list[Tensor] = []
    batch = 0
    while found < wanted and drawn < limit:
        images = generate(min(_BATCH, limit - drawn), seed + batch)
        places = np.flatnonzero(predict(images))[: wanted - found]
        missing = _KEPT - sum(map(len, kept))
        kept.append(images[places[:missing]])
        found += len(places)
        # The stream ends with the false member that completes the number, not with its batch.
        drawn += int(places[-1]) + 1 if found == wanted else len(images)
        batch += 1
        if on_found is not None:
            on_found(len(places))
    low, high = _interval(found, drawn, stopped=found == wanted)
    return FalseMembers(wanted, found, drawn, found / drawn, low, high, time.perf_counter() - start, torch.cat(kept))


def _interval(found: int, drawn: int, stopped: bool) -> tuple[float, float]:
    """The exact interval of a rate: of a negative binomial count where the last draw was a success by design."""
    if not stopped:
        low, high = clopper_pearson(found, drawn)
        return float(low), float(high)
    low = betaincinv(found, drawn - found + 1, 0.025)
    high = betaincinv(found, drawn - found, 0.975) if drawn > found else 1.0
    return float(low), float(high)
