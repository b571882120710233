"""Ctrl-C in a study."""

from __future__ import annotations

__all__ = ["StudyInterruptedError"]


class StudyInterruptedError(KeyboardInterrupt):
    """Ctrl-C, with a word on what is kept: the same call continues after it."""
