"""How a table of signals lies in a zarr store, and how what goes wrong there is said in one line.

A store holds one table at its root (the pool) and, where an audit needs them, others in groups beneath it. A table is::

    labels   int64   [N]
    keep     bool    [M, N]
    <stat>   float64 [M, N, A(, k)]     one chunk per model, uncompressed
    logits   float   [M, N, A, C]       likewise, where they are kept
    commits  uint8   [M, 1 + S, 32]     one chunk per model: SHA-256 of the row's key and of each array's row

``commits`` comes last, in one step with its attribute ``fastmem_signals``, which names the arrays in the order of the
record and seals labels and mask: a table without it was never finished. A row whose commit record is missing, or does
not match what is stored, does not exist. Any zarr v3 reader can read the arrays.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import BaseZarrError, ContainsArrayError
from zarr.storage import FsspecStore, LocalStore

from fastmem.errors import FastmemError, StoreError
from fastmem.signals.names import trailing_shape

__all__ = ["ATTRIBUTE", "FRESH", "GROUPS", "Layout", "as_url", "digest", "name_of", "open_store", "store_errors"]

ATTRIBUTE = "fastmem_signals"
GROUPS = ("", "population", "null", "null/population")
FRESH = "run the audit again with --fresh, or choose another folder"
_FORMAT = 1
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Layout:
    """Shapes, dtypes and seals of one table.

    Args:
        num_models: M.
        num_samples: N.
        num_queries: A.
        arrays: Stored statistics in the order of the commit record; ``"logits"`` among them where they are kept.
        num_classes: C where logits are kept, else None.
        logits_dtype: numpy name of the logits' dtype where they are kept, else None.
        labels_sha256: Digest of the labels.
        keep_sha256: Digest of the mask.
    """

    num_models: int
    num_samples: int
    num_queries: int
    arrays: tuple[str, ...]
    num_classes: int | None
    logits_dtype: str | None
    labels_sha256: str
    keep_sha256: str

    def row_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one model's row of an array, [N, A(, k)]."""
        trailing = (self.num_classes or 0,) if name == "logits" else trailing_shape(name)
        return (self.num_samples, self.num_queries, *trailing)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of an array."""
        return np.dtype(self.logits_dtype if name == "logits" else np.float64)

    def to_attribute(self) -> dict[str, Any]:
        """The group attribute that seals the table."""
        return {"format": _FORMAT, **asdict(self), "arrays": list(self.arrays)}

    @classmethod
    def from_attribute(cls, attribute: Any, where: str) -> Layout:
        """The layout that an attribute describes.

        Raises:
            StoreError: if the attribute is not one of this version of the format.
        """
        if not isinstance(attribute, dict) or attribute.get("format") != _FORMAT:
            found = attribute.get("format") if isinstance(attribute, dict) else None
            raise StoreError(where, f"signals of format {found!r}, this version reads {_FORMAT}", FRESH)
        fields = {key: value for key, value in attribute.items() if key != "format"}
        return cls(**{**fields, "arrays": tuple(fields["arrays"])})

    def create(self, where: str, node: zarr.Group, labels: np.ndarray, keep: np.ndarray) -> None:
        """Make the table in ``node``. Another process that does the same, or a kill at any step, does no harm.

        Raises:
            StoreError: if a run that was cut off has left arrays of another shape.
        """
        _make_array(where, node, "labels", labels.shape, labels.shape, labels.dtype)[...] = labels
        _make_array(where, node, "keep", keep.shape, keep.shape, keep.dtype)[...] = keep
        for name in self.arrays:
            row_shape = self.row_shape(name)
            _make_array(where, node, name, (self.num_models, *row_shape), (1, *row_shape), self.dtype(name))
        record = (1 + len(self.arrays), _DIGEST_BYTES)
        attributes = {ATTRIBUTE: self.to_attribute()}
        shape, chunks = (self.num_models, *record), (1, *record)
        _make_array(where, node, "commits", shape, chunks, np.dtype(np.uint8), attributes)


def _make_array(
    where: str,
    node: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype,
    attributes: dict[str, Any] | None = None,
) -> zarr.Array:
    # Nothing is overwritten: what a second process finds half made may by now hold the rows of the first.
    found = node.get(name)
    if found is None:
        with suppress(ContainsArrayError):
            return node.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=0,
                compressors=None,  # margins do not compress, and plain chunks read at the speed of the disk
                attributes=attributes,
            )
        found = node.get(name)
    if not isinstance(found, zarr.Array) or (found.shape, found.chunks, found.dtype) != (shape, chunks, dtype):
        raise StoreError(where, f"{name!r} is left over from another run", FRESH)
    return found


def digest(array: np.ndarray) -> bytes:
    """SHA-256 over the bytes of an array in row-major, little-endian order."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.view(np.uint8).reshape(-1).data if array.size else b"").digest()


def as_url(path: str | PathLike[str]) -> str:
    """A local path made absolute, or an fsspec URL as it is."""
    text = fspath(path)
    for protocol in ("file://", "local://"):  # of fsspec's names for this machine's files
        text = text.removeprefix(protocol)
    return text if "://" in text else str(Path(text).absolute())


def name_of(url: str, group: str) -> str:
    """How messages name a table: ``runs/a/signals.zarr`` or ``runs/a/signals.zarr [population]``."""
    return f"{url} [{group}]" if group else url


def open_store(url: str, *, read_only: bool) -> Store:
    """The zarr store of a local folder or an fsspec URL.

    Raises:
        StoreError: if a URL's protocol is unknown or its package is missing.
    """
    if "://" not in url:
        return LocalStore(url, read_only=read_only)
    try:
        return FsspecStore.from_url(url, read_only=read_only)
    except (ImportError, ValueError) as error:
        protocol = url.partition("://")[0]
        raise StoreError(url, str(error), f"install the fsspec package for {protocol}://, or use a folder") from None


@contextmanager
def store_errors(where: str, remedy: str = FRESH) -> Iterator[None]:
    """Turn whatever zarr, fsspec and the system raise into a :class:`StoreError` with a remedy."""
    try:
        yield
    except FastmemError:
        raise
    except BaseZarrError as error:
        raise StoreError(where, f"damaged or foreign zarr data ({_one_line(error)})", remedy) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem, remedy = "no space left on the disk", "free some space and run again: finished rows are kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            problem, remedy = f"permission denied ({error.strerror})", "choose a folder that you can write to"
        elif isinstance(error, NotADirectoryError | FileExistsError):
            problem, remedy = "a file is in the way of the folder", "choose another folder"
        else:
            problem, remedy = error.strerror or _one_line(error), "check the disk or the connection, and run again"
        raise StoreError(where, problem, remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        # What a truncated chunk, a missing field or broken JSON raises, depending on where the damage lies.
        raise StoreError(where, f"damaged ({_one_line(error)})", remedy) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__
