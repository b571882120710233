"""Which of the two GPU implementations ``auto`` prefers, by the number of classes.

Reasoned, not measured: no GPU was at hand when this table was written. To tune it, time both implementations with
``make bench`` on the device and change the entries; nothing else depends on them.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["priority"]

#: Classes up to (inclusive), the preferred implementation, and why it should win there.
PREFERRED = (
    (32, "cuda"),  # A thread per row reads its row from a tile that came in whole lines; Triton pads 10 classes to 16.
    (2048, "cuda"),  # Both read once and hold the row in registers; a call through Triton's launcher costs more.
    (2**31, "cuda"),  # Threads sum without meeting until the end of the row; Triton reduces a whole block per tile.
)

_PREFERRED_PRIORITY, _OTHER_PRIORITY = 40, 30
#: On CPU tensors (Triton's interpreter, emulated CUDA) they serve tests, and never by themselves.
_TEST_PRIORITY = -1


def priority(name: str, logits: Tensor) -> int:
    """The priority of implementation ``name`` ("triton" or "cuda") for logits ``[..., C]``."""
    if logits.device.type == "cpu":
        return _TEST_PRIORITY
    preferred = next(winner for bound, winner in PREFERRED if logits.shape[-1] <= bound)
    return _PREFERRED_PRIORITY if name == preferred else _OTHER_PRIORITY
