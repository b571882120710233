"""Errors that a user can act on: one line that names the argument, the problem and the remedy.

The command line turns any :class:`FastmemError` into that one line and exit code 2; everything else is a bug in
fastmem and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["FastmemError", "InputError", "StoreError", "UnknownNameError"]


class FastmemError(Exception):
    """Base of every error that fastmem raises on purpose.

    Args:
        argument: The argument, option, file or field at fault, by the name the user knows it by.
        problem: What was given or found.
        remedy: What is accepted, or what to do about it.
    """

    def __init__(self, argument: str, problem: str, remedy: str) -> None:
        super().__init__(f"{argument}: {problem}; {remedy}")
        self.argument = argument
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[FastmemError], tuple[str, ...]]:
        # Exceptions pickle by their message alone; worker processes hand these back to the caller whole.
        return type(self), (self.argument, self.problem, self.remedy)


class InputError(FastmemError, ValueError):
    """An argument has the wrong shape, type, value or combination."""


class StoreError(FastmemError, OSError):
    """A file or folder is missing, corrupt, half-written or cannot be written."""

    def __str__(self) -> str:
        # OSError would print an errno tuple.
        return f"{self.argument}: {self.problem}; {self.remedy}"


class UnknownNameError(InputError):
    """A name is not among those that exist; the message offers the nearest ones.

    Args:
        argument: The argument that took the name.
        given: The name that was given.
        valid: The names that exist.
    """

    def __init__(self, argument: str, given: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        nearest = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        super().__init__(argument, f"unknown name {given!r}", f"{nearest}accepted: {', '.join(names)}")
        self.given = given
        self.valid = tuple(names)

    def __reduce__(self) -> tuple[type[FastmemError], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.argument, self.given, self.valid)
