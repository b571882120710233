"""Which models stand beside a target as its references, so that their number tells nothing of its membership.

For a target model t and a record n, the other models that trained on n (IN) and those that did not (OUT) are its
*references*. Where every record is in exactly half of M models, leaving out the target leaves M/2 - 1 IN models for
its members and M/2 for the others: the mere count tells membership, and on data without any effect LiRA then reaches
an AUC of .42 at 8 models. With ``counts="equal"`` the number does not depend on the target's membership:

- A model that is the target's exact complement (paired designs) is never its reference.
- A target whose groups have the same sizes for every record (an outside model against a balanced design, references
  that saw nothing, a paired design without the complement) uses them whole.
- If every record is in the same number k of models, one model is cut from the group of the kind that the target is
  not: k - 1 IN and M - k - 1 OUT remain, for members and others alike. In an exact half both are M/2 - 1.
- Otherwise the larger group is cut to the size of the smaller. In a design that treats IN and OUT alike (independent
  coins, a part of an exact half) that size is as likely for members as for others; where models draw their members
  independently, at any rate, the counts of the others know nothing of the target.

Which models are cut follows from a hash of target and record: it looks at no value, and the same data give the same
choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmem.errors import InputError, UnknownNameError
from fastmem.ops._checks import require_dtype, require_tensor

__all__ = [
    "CUT_NOTHING",
    "CUT_ONE",
    "CUT_TO_SMALLER",
    "References",
    "leave_one_out",
    "missing_out",
    "reference_masks",
    "reference_sizes",
    "require_mask",
]

#: Entries of :attr:`References.rules`, in the order of the module's text.
CUT_NOTHING = 0
CUT_ONE = 1
CUT_TO_SMALLER = 2


class References(NamedTuple):
    """Which models stand beside each target: all others but the partner, cut to size by a rule."""

    targets: Tensor
    """Row of each target, int64 [T]."""
    partners: Tensor
    """Row of the model that is never the target's reference, -1 for none, int64 [T]."""
    rules: Tensor
    """:data:`CUT_NOTHING`, :data:`CUT_ONE` or :data:`CUT_TO_SMALLER`, int64 [T]."""


def leave_one_out(keep: Tensor, targets: Sequence[int] | None = None, counts: str = "equal") -> References:
    """Plan the references of every target.

    Args:
        keep: ``keep[m, n]`` is True where record n is in model m's training set, bool [M, N]; all records under
            attack, for a part of them may look like another design.
        targets: Rows of the targets; None for all models, each against all others.
        counts: ``"equal"``: as many references of each kind for members as for others (see the module).
            ``"all"``: every model but the target, as published scripts have it; leaks membership in exact designs.

    Returns:
        The plan, on the device of ``keep``.

    Raises:
        InputError: ``keep`` is not a boolean matrix, or a target is out of range.
        UnknownNameError: ``counts`` is neither of the two.
    """
    require_mask(keep)
    if counts not in ("equal", "all"):
        raise UnknownNameError("counts", str(counts), ("equal", "all"))
    num_models = keep.shape[0]
    rows = list(range(num_models)) if targets is None else [int(target) for target in targets]
    if not all(0 <= row < num_models for row in rows):
        raise InputError("targets", f"got {rows} for {num_models} models", f"give rows in 0..{num_models - 1}")
    partners, rules = [-1] * len(rows), [CUT_NOTHING] * len(rows)
    if counts == "equal":
        partners = _complements(keep, rows)
        totals = keep.sum(0)
        rules = [_rule(keep, totals, row, partner) for row, partner in zip(rows, partners, strict=True)]
    return References(*(torch.tensor(part, dtype=torch.int64, device=keep.device) for part in (rows, partners, rules)))


def reference_sizes(keep: Tensor, references: References) -> Iterator[tuple[Tensor, Tensor]]:
    """How many references each record has, target by target, without listing them.

    Args:
        keep: Membership, bool [M, N].
        references: The plan.

    Yields:
        For every target the numbers of IN and of OUT references, int64 [N] each.
    """
    totals = keep.sum(0)
    for target, partner, rule in zip(*(part.tolist() for part in references), strict=True):
        n_in = _without(totals, keep, target, partner)
        yield _wanted(n_in, keep.shape[0] - 1 - int(partner >= 0) - n_in, keep[target], rule)


def reference_masks(keep: Tensor, target: int, partner: int, rule: int, first_sample: int = 0) -> tuple[Tensor, Tensor]:
    """The models that are IN and those that are OUT references of one target.

    Args:
        keep: Membership, bool [M, N], of the records from ``first_sample`` on.
        target: Row of the target.
        partner: Its entry of :attr:`References.partners`.
        rule: Its entry of :attr:`References.rules`.
        first_sample: Number of the first record, on which the choice of the cut depends.

    Returns:
        Two masks, bool [M, N].
    """
    others = torch.ones_like(keep)
    others[target] = False
    if partner >= 0:
        others[partner] = False
    groups = (keep & others, ~keep & others)
    if rule == CUT_NOTHING:
        return groups
    sizes = (groups[0].sum(0), groups[1].sum(0))
    wanted = _wanted(*sizes, keep[target], rule)
    start = _hash(target, first_sample + torch.arange(keep.shape[1], device=keep.device))
    return _cut(groups[0], sizes[0], wanted[0], start), _cut(groups[1], sizes[1], wanted[1], start)


def missing_out(keep: Tensor, references: References, first_sample: int = 0) -> Tensor | None:
    """Which one of the models that did not train on a record is no OUT reference of a target.

    Args:
        keep: Membership, bool [M, N], of the records from ``first_sample`` on.
        references: The plan.
        first_sample: Number of the first record.

    Returns:
        Rows of models, int64 [T, N], -1 where all are; None if :data:`CUT_TO_SMALLER` may leave out several.
    """
    if (references.rules == CUT_TO_SMALLER).any():
        return None
    samples = first_sample + torch.arange(keep.shape[1], device=keep.device)
    out_first = keep.sort(dim=0, stable=True).indices
    n_out = (~keep).sum(0)
    missing = torch.empty((len(references.targets), keep.shape[1]), dtype=torch.int64, device=keep.device)
    for row, (target, partner, rule) in enumerate(zip(*(part.tolist() for part in references), strict=True)):
        missing[row] = torch.where(keep[target], partner, target)
        if rule == CUT_ONE:
            cut = out_first.gather(0, (_hash(target, samples) * n_out >> 31)[None])[0]
            missing[row] = torch.where(keep[target], cut, missing[row])
    return missing


def require_mask(keep: Tensor) -> None:
    """Refuse a ``keep`` that is not a boolean matrix."""
    require_tensor("keep", keep)
    require_dtype("keep", keep, (torch.bool,))
    if keep.ndim != 2:
        raise InputError("keep", f"has shape {list(keep.shape)}", "give [M, N]: a row per model, a column per record")


def _complements(keep: Tensor, rows: list[int]) -> list[int]:
    """For each row the one model whose mask is its exact opposite; -1 where there is none, or several."""
    masks = keep.cpu().numpy()
    having: dict[bytes, list[int]] = {}
    for model, mask in enumerate(masks):
        having.setdefault(mask.tobytes(), []).append(model)
    found = [having.get((~masks[row]).tobytes(), []) for row in rows]
    return [models[0] if len(models) == 1 else -1 for models in found]


def _rule(keep: Tensor, totals: Tensor, target: int, partner: int) -> int:
    """The entry of :attr:`References.rules` for one target; ``totals`` are the IN counts over all models, [N]."""
    if _constant(_without(totals, keep, target, partner)):
        return CUT_NOTHING
    return CUT_ONE if _constant(totals) else CUT_TO_SMALLER


def _wanted(n_in: Tensor, n_out: Tensor, member: Tensor, rule: int) -> tuple[Tensor, Tensor]:
    """The sizes [N] that the groups of a target are cut to."""
    if rule == CUT_ONE:
        return n_in - (~member).long(), n_out - member.long()
    smaller = torch.minimum(n_in, n_out)
    return (n_in, n_out) if rule == CUT_NOTHING else (smaller, smaller)


def _without(totals: Tensor, keep: Tensor, target: int, partner: int) -> Tensor:
    """The IN counts [N] without a target and its partner."""
    n_in = totals - keep[target].long()
    return n_in - keep[partner].long() if partner >= 0 else n_in


def _constant(values: Tensor) -> bool:
    return values.numel() == 0 or bool((values == values[0]).all())


def _cut(group: Tensor, size: Tensor, wanted: Tensor, start: Tensor) -> Tensor:
    """The group without ``size - wanted`` of its models, from the one at ``size * start / 2^31`` on, around the end."""
    some = size.clamp(min=1)
    place = (group.cumsum(0) - 1 - (start * some >> 31)) % some
    return group & (place >= size - wanted)


def _hash(target: int, samples: Tensor) -> Tensor:
    """31 well-mixed bits of target and record, int64 [N]: splitmix64 (Steele et al. 2014) seeded by the target."""
    x = samples + _int64((target + 1) * 0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _int64(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _int64(0x94D049BB133111EB)
    return _shift(x ^ _shift(x, 31), 33)


def _int64(value: int) -> int:
    """The value modulo 2^64 as a signed integer; int64 arithmetic then wraps as unsigned arithmetic does."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """The unsigned right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
