"""The run folder: one run at a time or several shards of one, every file whole or absent, no surprise on a full disk.

Locks are the operating system's, so a kill frees them. They hold between hosts too where the file system passes them
on (NFS from version 4, Lustre with ``flock``, CephFS, GPFS).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from fastmem.errors import StoreError

__all__ = ["RunFolder", "readable_size", "write_atomically"]

# What this module, the checkpoints and zarr's local store write before they rename.
_LEFTOVERS = (".*.tmp", ".*.part", "*.partial")
_KEEP_GOING = "finished rows are kept: mend it and run the same command again"

_WHOLE_RUN = ".lock"
_SHARDS = ".shard-*.lock"
# Shards that are started together take turns at making the tables, which takes a second.
_SHARD_TURN_SECONDS = 60.0

Prepared = TypeVar("Prepared")


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` and renames it into place once the block has ended well.

    Args:
        path: Where the file must stand; its folder exists.

    Yields:
        The path to write to. After an error or a kill ``path`` holds what it held before.

    Raises:
        StoreError: If the system refuses to write (no space, no permission, a read-only disk).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write below ``path`` into a StoreError of one line."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(str(error.filename or path), f"cannot be written ({reason})", _KEEP_GOING) from error


class RunFolder:
    """A folder that holds one run.

    Args:
        path: The folder; it is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it for this process; the operating system frees it, after a kill too.

        Raises:
            StoreError: If another process works in it, or if it cannot be made or written.
        """
        self.make()
        # Asking for the lock without waiting: a second run should say so, not sit there.
        with self._holding(_WHOLE_RUN, "another fastmem process is working in {}"):
            if shards := self._working_shards():
                raise StoreError(
                    "out",
                    f"{', '.join(shards)} of this run {'is' if len(shards) == 1 else 'are'} still at work in {self.path}",
                    "wait until they end",
                )
            self._remove_leftovers()
            yield
            # Again: an engine goes on where one of its workers was killed.
            self._remove_leftovers()

    @contextlib.contextmanager
    def joined(self, shard: str, prepare: Callable[[bool], Prepared]) -> Iterator[Prepared]:
        """Makes the folder and works in it beside other shards of the same run, but not beside a whole one.

        Args:
            shard: Its name, for example ``"shard 1 of 4"``.
            prepare: Called while no other shard prepares, with whether others are at work: then nothing of theirs may
                be removed.

        Yields:
            What ``prepare`` returned.

        Raises:
            StoreError: If a whole run or the same shard works in the folder, or it cannot be made or written.
        """
        self.make()
        with contextlib.ExitStack() as held:
            busy = "another fastmem process is working in {}"
            with self._holding(_WHOLE_RUN, busy, _SHARD_TURN_SECONDS):
                held.enter_context(
                    self._holding(f".{shard.replace(' ', '-')}.lock", f"{shard} is already at work in {{}}")
                )
                others = [name for name in self._working_shards() if name != shard]
                if not others:
                    self._remove_leftovers()
                prepared = prepare(bool(others))
            yield prepared

    def require_space(self, needed: int) -> None:
        """Refuses a run that would fill the disk half-way.

        Args:
            needed: Bytes that the run will write at most.

        Raises:
            StoreError: If the file system of the folder has less free space.
        """
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        with storage_errors(self.path):
            free = shutil.disk_usage(nearest).free
        if free < needed:
            raise StoreError(
                "out",
                f"{self.path} has {readable_size(free)} free, the run needs up to {readable_size(needed)}",
                "free some space, choose another folder with --out, or leave out --save-logits and --save-models",
            )

    def remove(self, names: Iterable[str]) -> None:
        """Deletes the named files and folders of an earlier run, and nothing else."""
        for name in names:
            target = self.path / name
            with storage_errors(target):
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _holding(self, name: str, busy: str, wait_seconds: float = 0.0) -> Iterator[None]:
        lock = FileLock(self.path / name)
        with storage_errors(self.path):
            try:
                lock.acquire(timeout=wait_seconds)
            except Timeout as error:
                remedy = "wait until it ends, or choose another folder with --out"
                raise StoreError("out", busy.format(self.path), remedy) from error
        try:
            yield
        finally:
            lock.release()

    def _working_shards(self) -> list[str]:
        """The shards whose lock is held, by this process or another."""
        working = []
        for path in sorted(self.path.glob(_SHARDS)):
            try:
                with FileLock(path).acquire(timeout=0):
                    pass
            except Timeout:
                working.append(path.name.removeprefix(".").removesuffix(".lock").replace("-", " "))
        return working

    def make(self) -> None:
        """Makes the folder, with those above it, and sees that it can be written.

        Raises:
            StoreError: If it cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}.tmp"
            probe.write_bytes(b"\0")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                "out",
                f"{self.path} cannot be written ({error.strerror or error})",
                "choose a folder that you may write to with --out",
            ) from error

    def _remove_leftovers(self) -> None:
        # Whoever held the lock before may have been killed between writing and renaming.
        for pattern in _LEFTOVERS:
            for leftover in self.path.rglob(pattern):
                leftover.unlink(missing_ok=True)


def readable_size(size: float) -> str:
    """Bytes in the unit that suits them: ``6.3 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
