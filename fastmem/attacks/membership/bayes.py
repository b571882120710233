"""BASE: the Bayes-approximate membership status estimate (Lassila et al. 2025, arXiv:2503.07482)."""

from __future__ import annotations

from dataclasses import dataclass

from fastmem.attacks.membership.base import Attack, AttackResult, require_choice
from fastmem.attacks.membership.panel import Panel
from fastmem.attacks.membership.ratio import at_large, log_ratios, margin_name, mean_out, require_positive
from fastmem.signals import Signals

__all__ = ["BASE"]


@dataclass(frozen=True)
class BASE(Attack):
    """How much likelier a target makes the true class than its references do; a mean over queries.

    ``online``: ``log p(target) - log pbar`` with pbar the mean of the IN and of the OUT references, half and half.
    Within a target it ranks as online RMIA at the same temperature, and needs no population.
    ``offline``: ``log p(target) - scale * log(mean over OUT)``.

    Args:
        variant: ``"online"`` or ``"offline"``.
        scale: Weight of the references, offline.
        temperature: T of ``p = softmax(h/T)_y``.
        counts: ``"equal"`` or ``"all"``; see :mod:`fastmem.ops.leave_one_out`.

    Raises:
        InputError: An option that does not exist. When called: a record without references of a kind that is used.
    """

    variant: str = "online"
    scale: float = 0.33
    temperature: float = 1.0
    counts: str = "equal"

    needs_references = True

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, ("online", "offline"))
        require_choice("counts", self.counts, ("equal", "all"))
        require_positive("scale", self.scale)
        require_positive("temperature", self.temperature)

    @property
    def key(self) -> str:
        """``base_online`` or ``base_offline``."""
        return f"base_{self.variant}"

    @property
    def title(self) -> str:
        """The name for human readers."""
        return f"BASE {self.variant}"

    @property
    def required_stats(self) -> tuple[str, ...]:
        """The margin at the temperature."""
        return (margin_name(self.temperature),)

    def _run(self, signals: Signals, targets: list[int], population: Signals | None) -> AttackResult:
        online = self.variant == "online"
        panel = Panel(signals.keep, targets, self.counts)
        panel.require(self.key, n_in=1 if online else 0, n_out=1)
        margin = signals.stat(margin_name(self.temperature))
        pbar = at_large if online else lambda moments: mean_out(moments) ** self.scale
        return AttackResult(log_ratios(panel, margin, pbar).numpy())
