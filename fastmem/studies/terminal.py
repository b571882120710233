"""What a person sees while a study runs: a bar with the time left on a terminal, a few plain lines in a log.

Progress goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Terminal"]

Advance = Callable[[int], None]

# A log gets a line each tenth of a stage, but none more often than this.
_LOG_EVERY_SECONDS = 10.0


class Terminal:
    """Progress of a study, stage by stage, and the seconds that each took.

    Args:
        quiet: Show nothing; the times are still taken.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """One line of remark."""
        self._console.print(line, markup=False)

    @contextlib.contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Shows a stage while its block runs, and adds its time to ``seconds``.

        Args:
            name: The stage in a few words, for example ``"train and query"``.
            total: Steps it has.
            done: Steps that an earlier run has done.

        Yields:
            A function to call with the number of steps that have just ended.
        """
        start = time.perf_counter()
        shown = self._bar if self._console.is_terminal else self._log
        try:
            with shown(name, total, done) as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @contextlib.contextmanager
    def _bar(self, name: str, total: int, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(name, total=total, completed=done)
            yield lambda steps: progress.advance(task, steps)

    @contextlib.contextmanager
    def _log(self, name: str, total: int, done: int) -> Iterator[Advance]:
        start = last = time.perf_counter()
        count = done

        def advance(steps: int) -> None:
            nonlocal count, last
            count += steps
            now = time.perf_counter()
            if now - last < _LOG_EVERY_SECONDS or count >= total:
                return
            last = now
            left = (now - start) / (count - done) * (total - count)
            self.say(f"{name}: {count} of {total}, about {left:.0f} s left")

        yield advance
        if total > 1:
            self.say(f"{name}: {count} of {total} in {time.perf_counter() - start:.1f} s")
