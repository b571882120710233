"""Attack keys as people type them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["split_keys"]


def split_keys(attacks: str | Sequence[str]) -> tuple[str, ...]:
    """``"loss, lira_online"`` or a list of keys as a tuple, each key once."""
    keys = attacks.split(",") if isinstance(attacks, str) else attacks
    return tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))
