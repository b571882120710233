"""Names of statistics: which exist, at which temperatures, and which follow from a margin.

With logits h, probabilities p = softmax(h), true class y, natural logarithms and everything in float64:

| name | value | end that points at a member |
|---|---|---|
| ``margin`` | s = h_y - logsumexp(h_c, c != y) = log p_y - log(1 - p_y) | high |
| ``loss`` | softplus(-s) = -log p_y | low |
| ``true_log_prob`` | -softplus(-s) = log p_y | high |
| ``hinge`` | h_y - max of the other logits | high |
| ``max_prob`` | max_c p_c | high |
| ``entropy`` | -sum_c p_c log p_c | low |
| ``modified_entropy`` | -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)  (Song and Mittal 2021) | low |
| ``top3`` | the three largest probabilities, descending; 0 where there are fewer classes | - |

``margin``, ``loss`` and ``true_log_prob`` exist at other temperatures too: ``margin@2`` is the margin of h/2. The loss
and the true-class log probability follow from the margin, so the margin is what gets stored (:func:`stored_names`).
"""

from __future__ import annotations

from collections.abc import Iterable

from fastmem.errors import InputError, UnknownNameError

__all__ = ["OF_MARGIN", "STAT_NAMES", "canonical_name", "margin_source", "parse_name", "stored_names", "trailing_shape"]

STAT_NAMES = ("margin", "loss", "true_log_prob", "hinge", "max_prob", "entropy", "modified_entropy", "top3")
OF_MARGIN = ("margin", "loss", "true_log_prob")


def canonical_name(name: str) -> str:
    """The one spelling of a statistic's name: ``margin@2.0`` is ``margin@2``, ``margin@1`` is ``margin``.

    Args:
        name: A name of :data:`STAT_NAMES`, with ``@T`` for a temperature T where the table allows one.

    Returns:
        The canonical name.

    Raises:
        UnknownNameError: if there is no such statistic (the nearest names are given).
        InputError: if the temperature is not a positive number, or the statistic exists at temperature 1 only.
    """
    base, temperature = parse_name(name)
    return base if temperature == 1.0 else f"{base}@{temperature:.12g}"


def parse_name(name: str) -> tuple[str, float]:
    """The base name and the temperature of a statistic; raises as :func:`canonical_name` does."""
    base, at, suffix = name.partition("@")
    if base not in STAT_NAMES:
        raise UnknownNameError("statistic", name, STAT_NAMES)
    if not at:
        return base, 1.0
    if base not in OF_MARGIN:
        raise InputError("statistic", f"{name!r} asks for a temperature", f"only {', '.join(OF_MARGIN)} take one")
    try:
        temperature = float(suffix)
    except ValueError:
        temperature = float("nan")
    if not 0.0 < temperature < float("inf"):
        raise InputError("statistic", f"temperature {suffix!r} in {name!r}", "give a positive number, as in 'margin@2'")
    return base, temperature


def margin_source(name: str) -> str | None:
    """The margin that ``name`` follows from without logits (``loss@2`` from ``margin@2``), or None."""
    base, temperature = parse_name(name)
    if base not in OF_MARGIN:
        return None
    return canonical_name(f"margin@{temperature!r}")


def stored_names(names: Iterable[str]) -> tuple[str, ...]:
    """The fewest statistics to store so that all of ``names`` can be had again, in order of first need."""
    return tuple(dict.fromkeys(margin_source(name) or canonical_name(name) for name in names))


def trailing_shape(name: str) -> tuple[int, ...]:
    """What follows [M, N, A] in the shape of a statistic: ``(3,)`` for ``top3``, else ``()``."""
    return (3,) if name == "top3" else ()
