"""A part of an audit's models, for schedulers that start the same command several times: ``--shard 2/8``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastmem.errors import InputError

__all__ = ["Shard"]


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th model of each cohort, whatever else is done or missing: shards never meet.

    Args:
        number: From 1.
        count: How many shards there are.

    Raises:
        InputError: If there is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError("shard", f"{self.number}/{self.count}", "give I/N with I from 1 to N")

    @classmethod
    def of(cls, text: str) -> Shard:
        """The shard that ``"2/8"`` names."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None:
            raise InputError("shard", repr(text), "give I/N, for example 2/8 for the second of eight")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    def part_of(self, num_models: int) -> range:
        """Its models of ``num_models``."""
        return range(self.number - 1, num_models, self.count)
